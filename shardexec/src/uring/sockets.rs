//! Socket calls that return at once, made directly: none of them waits for the network.
//!
//! Sockets of this driver are in blocking mode. io_uring arms its own poll for them, while on a nonblocking one it would hand
//! back EAGAIN.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, ipproto, sockopt};

use crate::driver::{ListenOptions, ShutdownHow};

/// A TCP socket for `address`'s family.
pub(super) fn stream(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?)
}

/// A listening socket and its bound address.
pub(super) fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = stream(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if options.reuse_port {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    let local = local(&socket)?;
    Ok((socket, local))
}

/// Sets an accepted socket up. `None`: the peer is gone already.
pub(super) fn accepted(socket: &OwnedFd) -> io::Result<Option<SocketAddr>> {
    match rustix::net::getpeername(socket) {
        Ok(Some(peer)) => {
            no_delay(socket, true)?;
            Ok(Some(peer.try_into()?))
        }
        Ok(None) | Err(Errno::NOTCONN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sets a connected socket up and tells its own address.
pub(super) fn connected(socket: &OwnedFd) -> io::Result<SocketAddr> {
    no_delay(socket, true)?;
    local(socket)
}

fn local(socket: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(rustix::net::getsockname(socket)?.try_into()?)
}

pub(super) fn no_delay(socket: impl AsFd, on: bool) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(socket, on)?)
}

pub(super) fn shutdown(socket: impl AsFd, how: ShutdownHow) -> io::Result<()> {
    let how = match how {
        ShutdownHow::Read => Shutdown::Read,
        ShutdownHow::Write => Shutdown::Write,
        ShutdownHow::Both => Shutdown::Both,
    };
    Ok(rustix::net::shutdown(socket, how)?)
}
