//! From an [`Op`] to a submission queue entry, and from a completion's number back to an [`OpOutput`].
//!
//! Memory: the kernel is given pointers into the op's own buffer, which is on the heap and does not move when the op does, or
//! into a [`Pinned`] value. Both live in [`InFlight`] until the last completion.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use io_uring::{opcode, squeue, types};
use rustix::net::{SocketAddrAny, addr::SocketAddrArg};

use super::sockets;
use crate::buf::IoBuf;
use crate::driver::{Op, OpKey, OpOutput, RawHandle};

/// The operations that the driver gives to the kernel.
pub(super) const OPCODES: [(u8, &str); 10] = [
    (opcode::Read::CODE, "IORING_OP_READ"),
    (opcode::Write::CODE, "IORING_OP_WRITE"),
    (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
    (opcode::Close::CODE, "IORING_OP_CLOSE"),
    (opcode::Accept::CODE, "IORING_OP_ACCEPT"),
    (opcode::Connect::CODE, "IORING_OP_CONNECT"),
    (opcode::Recv::CODE, "IORING_OP_RECV"),
    (opcode::Send::CODE, "IORING_OP_SEND"),
    (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
    (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
];

/// An operation between its submission and its last completion.
pub(super) struct InFlight {
    pub key: OpKey,
    pub op: Op,
    /// A cancellation is under way: EINTR, which the kernel's workers report then, means "cancelled".
    pub cancelled: bool,
    /// Of a connect.
    pub connecting: Option<Connecting>,
}

/// What a connect needs beside its op.
pub(super) struct Connecting {
    socket: OwnedFd,
    address: Pinned<SocketAddrAny>,
}

impl Connecting {
    pub fn new(address: SocketAddr) -> io::Result<Connecting> {
        Ok(Connecting { socket: sockets::stream(address)?, address: Pinned::new(address.as_any()) })
    }
}

/// A value on the heap that the kernel reads while its owner moves about. (A `Box` promises that nobody else looks.)
struct Pinned<T>(NonNull<T>);

impl<T> Pinned<T> {
    fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    fn get(&self) -> &T {
        // SAFETY: points to the leaked box, which is freed in `drop` only; the kernel only reads.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: made from a box in `new` and dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Set in the handles of files, which take longer to close than sockets; the bits below are the descriptor.
const FILE_BIT: u64 = 1 << 32;

fn fd(handle: RawHandle) -> types::Fd {
    types::Fd(raw_fd(handle))
}

/// The descriptor that a handle of this driver stands for.
pub(super) fn raw_fd(handle: RawHandle) -> RawFd {
    RawFd::try_from(handle.0 & !FILE_BIT).expect("handles of the uring driver are descriptors")
}

/// The handle that stands for a file; the executor closes it.
pub(super) fn file_handle(fd: OwnedFd) -> RawHandle {
    RawHandle(fd.into_raw_fd() as u64 | FILE_BIT)
}

/// The handle that stands for a socket; the executor closes it.
pub(super) fn socket_handle(fd: OwnedFd) -> RawHandle {
    RawHandle(fd.into_raw_fd() as u64)
}

/// A socket that the executor will never hear of, as something that closes itself.
pub(super) fn owned(socket: RawHandle) -> OwnedFd {
    // SAFETY: made by `socket_handle` and given to nobody else.
    unsafe { OwnedFd::from_raw_fd(raw_fd(socket)) }
}

impl InFlight {
    /// The entry that starts this op. It points into the op: nobody may touch the buffer until the last completion.
    pub fn entry(&mut self) -> squeue::Entry {
        let entry = match &mut self.op {
            Op::Read { file, buf, start, offset } => {
                let into = &mut buf.as_mut_slice()[*start..];
                opcode::Read::new(fd(*file), into.as_mut_ptr(), into.len() as u32).offset(*offset).build()
            }
            Op::Write { file, buf, start, offset } => {
                let from = &buf.as_slice()[*start..];
                opcode::Write::new(fd(*file), from.as_ptr(), from.len() as u32).offset(*offset).build()
            }
            Op::Sync { file, data_only } => {
                let flags = if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(fd(*file)).flags(flags).build()
            }
            Op::Close { handle } => {
                let close = opcode::Close::new(fd(*handle)).build();
                // The last close of an unlinked file frees its blocks, which may take long: not on the core.
                if handle.0 & FILE_BIT == 0 { close } else { close.flags(squeue::Flags::ASYNC) }
            }
            Op::Accept { listener, multishot: true } => {
                opcode::AcceptMulti::new(fd(*listener)).flags(libc::SOCK_CLOEXEC).build()
            }
            Op::Accept { listener, multishot: false } => {
                // The peer's address is asked for afterwards, so that nothing has to be pinned here.
                opcode::Accept::new(fd(*listener), std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Op::Connect { .. } => {
                let Connecting { socket, address } =
                    self.connecting.as_ref().expect("set when the connect was submitted");
                let address = address.get();
                opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.addr_len()).build()
            }
            Op::Recv { socket, buf } => {
                let spare = buf.spare_capacity_mut();
                opcode::Recv::new(fd(*socket), spare.as_mut_ptr().cast(), spare.len() as u32).build()
            }
            Op::Send { socket, buf, start } => {
                let from = &buf.as_slice()[*start..];
                opcode::Send::new(fd(*socket), from.as_ptr(), from.len() as u32).flags(libc::MSG_NOSIGNAL).build()
            }
            other => unreachable!("{other:?} does not go through the ring"),
        };
        entry.user_data(self.key.to_user_data())
    }

    /// What a completion with `result` means, or `None`: nothing, the op must go on (a connection that was gone before
    /// anybody could look at it).
    pub fn outcome(&mut self, result: i32) -> Option<io::Result<OpOutput>> {
        if result < 0 {
            let errno = if self.cancelled && result == -libc::EINTR { libc::ECANCELED } else { -result };
            return Some(Err(io::Error::from_raw_os_error(errno)));
        }
        Some(match &mut self.op {
            Op::Read { .. } | Op::Write { .. } | Op::Send { .. } => Ok(OpOutput::Count(result as usize)),
            Op::Recv { buf, .. } => {
                received(buf, result as usize);
                Ok(OpOutput::Count(result as usize))
            }
            Op::Accept { .. } => {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                let socket = unsafe { OwnedFd::from_raw_fd(result) };
                match sockets::accepted(&socket) {
                    Ok(Some(peer)) => Ok(OpOutput::Accepted { socket: socket_handle(socket), peer }),
                    Ok(None) => return None,
                    Err(error) => Err(error),
                }
            }
            Op::Connect { .. } => {
                let socket = self.connecting.take().expect("set when the connect was submitted").socket;
                sockets::connected(&socket).map(|local| OpOutput::Connected { socket: socket_handle(socket), local })
            }
            _ => Ok(OpOutput::Done),
        })
    }
}

fn received(buf: &mut IoBuf, count: usize) {
    let len = buf.len() + count;
    // SAFETY: the kernel has filled `count` bytes of the spare capacity that `entry` gave it.
    unsafe { buf.assume_init_up_to(len) };
}
