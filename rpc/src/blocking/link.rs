//! One connection: a non-blocking socket and the protocol's state machine.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::body::Body;
use crate::client::{ClientError, ClientOptions, READ_BYTES};
use crate::protocol::{Call, Connection, Event, ServerError, SubmitError};
use crate::schema::HelloReply;

/// What came in for a ticket.
pub(super) type Answer = (u64, Result<Body, ServerError>);

#[derive(Debug)]
pub(super) struct Link {
    address: SocketAddr,
    stream: TcpStream,
    connection: Connection,
    input: Vec<u8>,
    tickets: FxHashMap<u64, u64>,
    read_timeout: Duration,
    write_timeout: Duration,
    /// Since when the peer owes us progress in a direction; `None` while it owes nothing.
    read_since: Option<Instant>,
    write_since: Option<Instant>,
}

impl Link {
    /// Connects and says hello, within `timeout`.
    pub(super) fn open(address: SocketAddr, timeout: Duration, options: &ClientOptions) -> Result<Link, ClientError> {
        let deadline = Instant::now() + timeout;
        let connect = |error| ClientError::connect(address, &error);
        let stream = TcpStream::connect_timeout(&address, timeout.max(Duration::from_millis(1))).map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        stream.set_nonblocking(true).map_err(connect)?;
        let mut link = Link {
            address,
            stream,
            connection: Connection::new(&options.name, options.in_flight_max),
            input: vec![0; READ_BYTES],
            tickets: FxHashMap::default(),
            read_timeout: options.read_timeout,
            write_timeout: options.write_timeout,
            read_since: None,
            write_since: None,
        };
        let mut answers = Vec::new();
        while link.connection.hello().is_none() {
            if link.pump(&mut answers)? {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let error = std::io::Error::new(ErrorKind::TimedOut, "connected, but no answer to the hello");
                return Err(connect(error));
            }
            wait(&mut [link.poll_fd()], left);
        }
        assert!(answers.is_empty(), "nothing was asked yet");
        Ok(link)
    }

    pub(super) fn hello(&self) -> &HelloReply {
        self.connection.hello().expect("a link is opened with its hello")
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Queues a request for sending.
    pub(super) fn submit(&mut self, ticket: u64, call: &Call, deadline: u64, left_ms: u32) -> Result<(), SubmitError> {
        let correlation = self.connection.submit(call, Some(deadline), left_ms)?;
        self.tickets.insert(correlation, ticket);
        Ok(())
    }

    /// A ticket whose deadline passed; call until `None`.
    pub(super) fn expire(&mut self, now: u64) -> Option<u64> {
        let correlation = self.connection.expire(now)?;
        Some(self.tickets.remove(&correlation).expect("each request in flight has its ticket"))
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.connection.next_deadline()
    }

    /// The tickets in flight, when the link is given up.
    pub(super) fn into_tickets(self) -> impl Iterator<Item = u64> {
        self.tickets.into_values()
    }

    pub(super) fn output_bytes(&self) -> usize {
        self.connection.output().len()
    }

    /// Writes and reads what goes without waiting. `true` if it is worth looking again before waiting.
    pub(super) fn pump(&mut self, answers: &mut Vec<Answer>) -> Result<bool, ClientError> {
        let wrote = self.write()?;
        let read = self.read(answers)?;
        self.check_timeouts(wrote, read)?;
        Ok(read || (wrote && !self.connection.output().is_empty()))
    }

    fn write(&mut self) -> Result<bool, ClientError> {
        let mut moved = false;
        while !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(0) => return Err(self.lost(&"the socket takes no more bytes")),
                Ok(count) => {
                    self.connection.advance_output(count);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lost(&error)),
            }
        }
        Ok(moved)
    }

    fn read(&mut self, answers: &mut Vec<Answer>) -> Result<bool, ClientError> {
        let mut moved = false;
        loop {
            let direct = self.connection.spare();
            let room = direct.as_ref().map_or(self.input.len(), |spare| spare.len());
            let (result, is_direct) = match direct {
                Some(spare) => (self.stream.read(spare), true),
                None => (self.stream.read(&mut self.input), false),
            };
            let count = match result {
                Ok(0) => return Err(self.lost(&"the server closed it")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(moved),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.lost(&error)),
            };
            moved = true;
            if is_direct {
                self.connection.commit(count);
            }
            self.take(if is_direct { 0 } else { count }, answers)?;
            if count < room {
                return Ok(true);
            }
        }
    }

    /// Hands the first `count` bytes of the input to the state machine.
    fn take(&mut self, count: usize, answers: &mut Vec<Answer>) -> Result<(), ClientError> {
        let mut input = &self.input[..count];
        loop {
            match self.connection.receive(&mut input) {
                Ok(None) => return Ok(()),
                Ok(Some(Event::Ready)) => {}
                Ok(Some(Event::Reply { correlation, result })) => {
                    let ticket = self.tickets.remove(&correlation).expect("each request in flight has its ticket");
                    answers.push((ticket, result));
                }
                Err(error) => return Err(ClientError::Protocol { address: self.address, error }),
            }
        }
    }

    fn check_timeouts(&mut self, wrote: bool, read: bool) -> Result<(), ClientError> {
        let waits_for_read = self.connection.in_flight() > 0 && self.connection.output().is_empty();
        let waits_for_write = !self.connection.output().is_empty();
        if !waits_for_read && !waits_for_write {
            (self.read_since, self.write_since) = (None, None);
            return Ok(());
        }
        let now = Instant::now();
        let since = |since: &mut Option<Instant>, waits: bool, moved: bool| {
            *since = if waits { since.filter(|_| !moved).or(Some(now)) } else { None };
            since.map_or(Duration::ZERO, |since| now - since)
        };
        if since(&mut self.read_since, waits_for_read, read || wrote) >= self.read_timeout {
            return Err(self.lost(&format!("nothing received for {:?} while replies were due", self.read_timeout)));
        }
        if since(&mut self.write_since, waits_for_write, wrote || read) >= self.write_timeout {
            return Err(self.lost(&format!("nothing could be sent for {:?}", self.write_timeout)));
        }
        Ok(())
    }

    /// When this link counts as lost unless something moves.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        let read = self.read_since.map(|since| since + self.read_timeout);
        let write = self.write_since.map(|since| since + self.write_timeout);
        read.into_iter().chain(write).min()
    }

    /// What to wait for on the socket.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        let out = if self.connection.output().is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN | out)
    }

    fn lost(&self, detail: &impl ToString) -> ClientError {
        ClientError::disconnected(self.address, detail)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits until a socket is ready, at most for `timeout`. A wake-up for no reason does no harm: callers look again.
pub(super) fn wait(sockets: &mut [PollFd<'_>], timeout: Duration) {
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
    let _ready_or_interrupted = poll(sockets, Some(&timeout));
}
