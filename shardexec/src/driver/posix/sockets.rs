//! Sockets over edge-triggered epoll.
//!
//! Each direction of a socket has a queue of ops and a hint whether trying is worth a system call. An edge sets the hint;
//! running dry (EAGAIN, or a short transfer, which on a stream means the same) clears it. After the peer has ended its side
//! the read hint stays set, because no further edge will announce the end of the stream.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrAny, SocketFlags, SocketType, sockopt};

use crate::buf::IoBuf;
use crate::driver::{Completion, ListenOptions, Op, OpKey, OpOutput, RawHandle, ShutdownHow};

pub(super) struct Sockets {
    epoll: Arc<OwnedFd>,
    /// By descriptor number.
    table: Vec<Option<Socket>>,
    /// The descriptor at which each op that would block waits.
    waiting: BTreeMap<OpKey, usize>,
}

struct Socket {
    fd: OwnedFd,
    read: Direction,
    write: Direction,
    peer_ended: bool,
}

struct Direction {
    worth_trying: bool,
    queue: VecDeque<(OpKey, Op)>,
}

impl Direction {
    fn withdraw(&mut self, key: OpKey) -> Option<Op> {
        let at = self.queue.iter().position(|(waiting, _)| *waiting == key)?;
        self.queue.remove(at).map(|(_, op)| op)
    }
}

/// What one try of an op gave.
enum Tried {
    Done(OpOutput),
    /// A transfer shorter than asked for: done, and the socket has run dry.
    DoneAndDry(OpOutput),
    /// A new connection, still without a place in the table.
    Accepted(OwnedFd, SocketAddr),
}

impl Sockets {
    pub fn new(epoll: Arc<OwnedFd>) -> Sockets {
        Sockets { epoll, table: Vec::new(), waiting: BTreeMap::new() }
    }

    pub fn nothing_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn submit(&mut self, key: OpKey, op: Op, ready: &mut Vec<Completion>) {
        let result = match &op {
            Op::Listen { addr, options } => self.listen(*addr, *options),
            Op::Connect { addr } => match self.connect(*addr) {
                Ok(fd) => {
                    self.socket(fd).write.worth_trying = false; // The edge tells when it is connected.
                    return self.enqueue(fd, key, op);
                }
                Err(error) => Err(error),
            },
            Op::Shutdown { socket, how } => shutdown(&self.socket(socket.0 as usize).fd, *how),
            Op::SetNoDelay { socket, on } => {
                let set = sockopt::set_tcp_nodelay(&self.socket(socket.0 as usize).fd, *on);
                set.map(|()| OpOutput::Done).map_err(io::Error::from)
            }
            Op::Accept { listener: handle, .. } | Op::Recv { socket: handle, .. } | Op::Send { socket: handle, .. } => {
                let fd = handle.0 as usize;
                self.enqueue(fd, key, op);
                return self.serve(fd, ready);
            }
            other => unreachable!("{other:?} is not a socket operation"),
        };
        ready.push(Completion { key, op, result, more: false });
    }

    /// Ends a waiting op early. False: it does not wait here.
    pub fn cancel(&mut self, key: OpKey, ready: &mut Vec<Completion>) -> bool {
        let Some(fd) = self.waiting.remove(&key) else { return false };
        let socket = self.socket(fd);
        let withdrawn = socket.read.withdraw(key).or_else(|| socket.write.withdraw(key));
        let op = withdrawn.expect("an op waits where it is booked");
        if matches!(op, Op::Connect { .. }) {
            self.table[fd] = None; // Half open: nobody has a handle to it.
        }
        ready.push(Completion { key, op, result: Err(Errno::CANCELED.into()), more: false });
        true
    }

    /// False: not a socket.
    pub fn close(&mut self, handle: RawHandle) -> bool {
        let Some(socket) = self.table.get_mut(handle.0 as usize).and_then(Option::take) else { return false };
        assert!(socket.read.queue.is_empty() && socket.write.queue.is_empty(), "{handle:?} closed while in use");
        true
    }

    pub fn on_event(&mut self, fd: usize, flags: EventFlags, ready: &mut Vec<Completion>) {
        // Sockets are closed between polls only, and closing takes them out of epoll: no event outlives its socket.
        let socket = self.socket(fd);
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        socket.peer_ended |= broken || flags.contains(EventFlags::RDHUP);
        socket.read.worth_trying |= broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        socket.write.worth_trying |= broken || flags.contains(EventFlags::OUT);
        self.serve(fd, ready);
    }

    /// Tries what waits at a socket until it would block.
    fn serve(&mut self, fd: usize, ready: &mut Vec<Completion>) {
        loop {
            let socket = self.socket(fd);
            let direction = match (&socket.read, &socket.write) {
                (read, _) if read.worth_trying && !read.queue.is_empty() => &mut socket.read,
                (_, write) if write.worth_trying && !write.queue.is_empty() => &mut socket.write,
                _ => return,
            };
            let (key, mut op) = direction.queue.pop_front().expect("checked above");
            let result = match try_op(&socket.fd, &mut op) {
                Err(Errno::AGAIN) => {
                    direction.worth_trying = false;
                    direction.queue.push_front((key, op));
                    continue;
                }
                Ok(Tried::Done(output)) => Ok(output),
                Ok(Tried::DoneAndDry(output)) => {
                    direction.worth_trying = false;
                    socket.read.worth_trying |= socket.peer_ended;
                    Ok(output)
                }
                Ok(Tried::Accepted(accepted, peer)) => {
                    self.adopt(accepted).map(|socket| OpOutput::Accepted { socket: RawHandle(socket as u64), peer })
                }
                Err(error) => Err(error.into()),
            };
            self.waiting.remove(&key);
            let result = self.finish_connect(fd, &op, result);
            let gone = matches!(op, Op::Connect { .. }) && result.is_err();
            ready.push(Completion { key, op, result, more: false });
            if gone {
                return;
            }
        }
    }

    /// A connect that failed leaves no handle, so its socket goes here.
    fn finish_connect(&mut self, fd: usize, op: &Op, result: io::Result<OpOutput>) -> io::Result<OpOutput> {
        if !matches!(op, Op::Connect { .. }) {
            return result;
        }
        let connected = result.and_then(|_| {
            let local = rustix::net::getsockname(&self.socket(fd).fd)?.try_into()?;
            Ok(OpOutput::Connected { socket: RawHandle(fd as u64), local })
        });
        if connected.is_err() {
            self.table[fd] = None;
        }
        connected
    }

    fn enqueue(&mut self, fd: usize, key: OpKey, op: Op) {
        self.waiting.insert(key, fd);
        let socket = self.socket(fd);
        let direction = match op {
            Op::Send { .. } | Op::Connect { .. } => &mut socket.write,
            _ => &mut socket.read,
        };
        direction.queue.push_back((key, op));
    }

    fn socket(&mut self, fd: usize) -> &mut Socket {
        self.table.get_mut(fd).and_then(Option::as_mut).expect("an op names an open socket")
    }

    fn adopt(&mut self, fd: OwnedFd) -> io::Result<usize> {
        let number = fd.as_raw_fd() as usize;
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&*self.epoll, &fd, EventData::new_u64(number as u64), interest)?;
        if self.table.len() <= number {
            self.table.resize_with(number + 1, || None);
        }
        let direction = || Direction { worth_trying: true, queue: VecDeque::new() };
        let socket = Socket { fd, read: direction(), write: direction(), peer_ended: false };
        let before = self.table[number].replace(socket);
        assert!(before.is_none(), "descriptor {number} was closed behind the driver's back");
        Ok(number)
    }

    fn listen(&mut self, addr: SocketAddr, options: ListenOptions) -> io::Result<OpOutput> {
        let fd = new_socket(addr)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        if options.reuse_port {
            sockopt::set_socket_reuseport(&fd, true)?;
        }
        rustix::net::bind(&fd, &addr)?;
        rustix::net::listen(&fd, i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let local = rustix::net::getsockname(&fd)?.try_into()?;
        Ok(OpOutput::Listening { listener: RawHandle(self.adopt(fd)? as u64), local })
    }

    fn connect(&mut self, addr: SocketAddr) -> io::Result<usize> {
        let fd = new_socket(addr)?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        match rustix::net::connect(&fd, &addr) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => self.adopt(fd),
            Err(error) => Err(error.into()),
        }
    }
}

fn new_socket(addr: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn shutdown(fd: &OwnedFd, how: ShutdownHow) -> io::Result<OpOutput> {
    let how = match how {
        ShutdownHow::Read => Shutdown::Read,
        ShutdownHow::Write => Shutdown::Write,
        ShutdownHow::Both => Shutdown::Both,
    };
    Ok(rustix::net::shutdown(fd, how).map(|()| OpOutput::Done)?)
}

fn try_op(fd: &OwnedFd, op: &mut Op) -> rustix::io::Result<Tried> {
    match op {
        Op::Recv { buf, .. } => {
            let room = buf.capacity() - buf.len();
            let received = recv(fd, buf)?;
            Ok(transferred(received, room))
        }
        Op::Send { buf, start, .. } => {
            let rest = &buf.as_slice()[*start..];
            Ok(transferred(rustix::net::send(fd, rest, SendFlags::NOSIGNAL)?, rest.len()))
        }
        Op::Accept { .. } => accept(fd),
        Op::Connect { .. } => {
            sockopt::socket_error(fd)??;
            Ok(Tried::Done(OpOutput::Done))
        }
        other => unreachable!("{other:?} never waits"),
    }
}

fn transferred(count: usize, asked: usize) -> Tried {
    let output = OpOutput::Count(count);
    // 0 received is the end of the stream, which stays.
    if count > 0 && count < asked { Tried::DoneAndDry(output) } else { Tried::Done(output) }
}

/// Appends to `buf`, within its capacity.
fn recv(fd: &OwnedFd, buf: &mut IoBuf) -> rustix::io::Result<usize> {
    match buf {
        IoBuf::Vec(buf) => {
            let (received, _) = rustix::net::recv(fd, rustix::buffer::spare_capacity(buf), RecvFlags::empty())?;
            Ok(received)
        }
        IoBuf::Aligned(buf) => {
            let before = buf.len();
            buf.set_len(buf.capacity());
            let received = rustix::net::recv(fd, &mut buf[before..], RecvFlags::empty());
            buf.set_len(before + received.map_or(0, |(count, _)| count));
            Ok(received?.0)
        }
        IoBuf::Shared(_) => unreachable!("only a buffer of one's own can be filled"),
    }
}

fn accept(listener: &OwnedFd) -> rustix::io::Result<Tried> {
    loop {
        match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((fd, peer)) => {
                sockopt::set_tcp_nodelay(&fd, true)?;
                let peer: Option<SocketAddr> = peer.and_then(|peer: SocketAddrAny| peer.try_into().ok());
                return Ok(Tried::Accepted(fd, peer.ok_or(Errno::AFNOSUPPORT)?));
            }
            // The peer gave up before we came: the next one.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
