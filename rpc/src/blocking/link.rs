//! A connection of the blocking client: a non-blocking `std` socket in a pump, and `poll(2)`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::{ClientError, ClientOptions, Pump, Socket};

/// A connection whose waiters are tickets.
pub(super) type Link = Pump<TcpStream, u64>;

impl Socket for TcpStream {
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(into)
    }

    fn try_write(&self, from: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(from)
    }
}

/// Connects and says hello, within `timeout`.
pub(super) fn open(address: SocketAddr, timeout: Duration, options: &ClientOptions) -> Result<Link, ClientError> {
    let deadline = Instant::now() + timeout;
    let connect = |error| ClientError::connect(address, &error);
    let stream = TcpStream::connect_timeout(&address, timeout.max(Duration::from_millis(1))).map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    stream.set_nonblocking(true).map_err(connect)?;
    let mut link = Link::new(address, stream, options);
    let mut answers = Vec::new();
    while link.hello().is_none() {
        if link.pump(&mut answers)? {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::hello_timed_out(address));
        }
        wait(&mut [poll_fd(&link)], left);
    }
    assert!(answers.is_empty(), "nothing was asked yet");
    Ok(link)
}

/// What to wait for on a link's socket.
pub(super) fn poll_fd(link: &Link) -> PollFd<'_> {
    let out = if link.output_bytes() == 0 { PollFlags::empty() } else { PollFlags::OUT };
    PollFd::from_borrowed_fd(link.socket().as_fd(), PollFlags::IN | out)
}

/// Waits until a socket is ready, at most for `timeout`. A wake-up for no reason does no harm: callers look again.
pub(super) fn wait(sockets: &mut [PollFd<'_>], timeout: Duration) {
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
    let _ready_or_interrupted = poll(sockets, Some(&timeout));
}
