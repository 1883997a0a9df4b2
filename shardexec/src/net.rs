//! TCP.
//!
//! TCP_NODELAY is on from the start: messages are framed and sent whole. Buffers go in by value and come back, as for files.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::buf::{OwnedBuf, OwnedBufMut};
pub use crate::driver::{ListenOptions, ShutdownHow};
use crate::driver::{Op, OpOutput};
use crate::executor::ops::{Handle, OpFuture, OpResult, OpStream};
use crate::executor::state::current;
use crate::sync::semaphore::Semaphore;

/// Connections that may wait for an accept unless the options say otherwise.
pub const BACKLOG_DEFAULT: u32 = 1024;

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions { reuse_port: false, backlog: BACKLOG_DEFAULT }
    }
}

/// A bound port. Closed when dropped; connections that were not yet accepted are refused then.
pub struct TcpListener {
    handle: Rc<Handle>,
    incoming: RefCell<OpStream>,
    /// One at a time may wait on `incoming`.
    turn: Semaphore,
    local: SocketAddr,
}

impl TcpListener {
    /// Binds `addr` (port 0: any free one) and listens.
    pub async fn bind(addr: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
        let core = current();
        match OpFuture::new(Rc::clone(&core), None, Op::Listen { addr, options }).await.0? {
            OpOutput::Listening { listener, local } => Ok(TcpListener {
                handle: Handle::new(Rc::clone(&core), listener),
                incoming: RefCell::new(OpStream::new(core)),
                turn: Semaphore::new(1),
                local,
            }),
            other => unreachable!("the driver answered a listen with {other:?}"),
        }
    }

    /// The address that is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection and who made it. Dropping the future loses none.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let _turn = self.turn.acquire().await.expect("the semaphore is never closed");
        let op = || Op::Accept { listener: self.handle.raw(), multishot: true };
        let output = poll_fn(|cx| self.incoming.borrow_mut().poll_next(&self.handle, op, cx)).await?;
        match output {
            OpOutput::Accepted { socket, peer } => {
                let handle = Handle::new(Rc::clone(self.handle.core()), socket);
                Ok((TcpStream { handle, local: self.local, peer }, peer))
            }
            other => unreachable!("the driver answered an accept with {other:?}"),
        }
    }
}

/// A connection. Clones share it; it is closed when the last of them, and the last operation on it, is gone. One task may
/// receive while another sends.
#[derive(Clone)]
pub struct TcpStream {
    handle: Rc<Handle>,
    local: SocketAddr,
    peer: SocketAddr,
}

impl TcpStream {
    /// Connects to `addr`. Without a deadline of its own: the kernel gives up after minutes, see
    /// [`timeout`](crate::time::timeout()).
    pub async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
        let core = current();
        match OpFuture::new(Rc::clone(&core), None, Op::Connect { addr }).await.0? {
            OpOutput::Connected { socket, local } => {
                Ok(TcpStream { handle: Handle::new(core, socket), local, peer: addr })
            }
            other => unreachable!("the driver answered a connect with {other:?}"),
        }
    }

    /// Appends what has arrived to `buf`, at most its spare capacity, waiting for at least a byte. 0: the peer has ended
    /// its side. Dropping the future loses no data only if it never was polled: keep it across a `select`.
    ///
    /// # Panics
    /// When `buf` has no spare capacity: the result would look like the end of the stream.
    pub async fn recv<B: OwnedBufMut>(&self, buf: B) -> (io::Result<usize>, B) {
        let mut buf = buf.into_io();
        assert!(
            buf.capacity() > buf.len(),
            "receiving needs spare capacity: the buffer is full with {} bytes",
            buf.len()
        );
        loop {
            let (result, op) = OpFuture::on(&self.handle, Op::Recv { socket: self.handle.raw(), buf }).await;
            let Op::Recv { buf: returned, .. } = op else { unreachable!("the driver returned another op") };
            match count(result) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => buf = returned,
                result => return (result, B::from_io(returned)),
            }
        }
    }

    /// Sends bytes of `buf` from the `start`-th on, as many as the socket takes at once, waiting for room for at least one.
    /// Dropping the future may leave any part of them sent.
    pub async fn send<B: OwnedBuf>(&self, buf: B, start: usize) -> (io::Result<usize>, B) {
        let mut buf = buf.into_io();
        assert!(start < buf.len(), "nothing to send behind byte {start} of {}", buf.len());
        loop {
            let op = Op::Send { socket: self.handle.raw(), buf, start };
            let (result, op) = OpFuture::on(&self.handle, op).await;
            let Op::Send { buf: returned, .. } = op else { unreachable!("the driver returned another op") };
            match count(result) {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), B::from_io(returned)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => buf = returned,
                result => return (result, B::from_io(returned)),
            }
        }
    }

    /// Sends the whole of `buf`. On an error, or when the future is dropped, any part of it may have been sent.
    pub async fn send_all<B: OwnedBuf>(&self, buf: B) -> (io::Result<()>, B) {
        let mut buf = buf.into_io();
        let mut done = 0;
        while done < buf.len() {
            let (sent, returned) = self.send(buf, done).await;
            buf = returned;
            match sent {
                Ok(count) => done += count,
                Err(error) => return (Err(error), B::from_io(buf)),
            }
        }
        (Ok(()), B::from_io(buf))
    }

    /// Ends one or both directions; the peer reads the end of the stream after what was sent.
    pub async fn shutdown(&self, how: ShutdownHow) -> io::Result<()> {
        done(OpFuture::on(&self.handle, Op::Shutdown { socket: self.handle.raw(), how }).await.0)
    }

    /// Switches TCP_NODELAY, which is on at first.
    pub async fn set_nodelay(&self, on: bool) -> io::Result<()> {
        done(OpFuture::on(&self.handle, Op::SetNoDelay { socket: self.handle.raw(), on }).await.0)
    }

    /// Our own end. For an accepted connection the listener's address, which may be a wildcard.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

fn count(result: OpResult) -> io::Result<usize> {
    result.map(|output| match output {
        OpOutput::Count(n) => n,
        other => unreachable!("the driver answered a transfer with {other:?}"),
    })
}

fn done(result: OpResult) -> io::Result<()> {
    result.map(|output| match output {
        OpOutput::Done => {}
        other => unreachable!("the driver answered with {other:?} where nothing was asked"),
    })
}
