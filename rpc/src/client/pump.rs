//! One connection: a non-blocking socket and the protocol's state machine, for both clients.
//!
//! ```text
//!   submit(waiter, call) ─▶ Connection ─▶ pump ─▶ socket
//!   (waiter, answer) ◀───── Connection ◀─ pump ◀─ socket        waiting for readiness is the client's
//! ```
//!
//! Invariant: every waiter comes out exactly once: with its answer, by [`Pump::expire`], or by [`Pump::into_waiting`].

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::body::Body;
use crate::client::{ClientError, ClientOptions};
use crate::protocol::{Call, Connection, Event, ServerError, SubmitError};
use crate::schema::HelloReply;

/// Bytes that one read from a socket asks for.
const READ_BYTES: usize = 64 << 10;

/// A socket that never waits: what would wait is `WouldBlock`.
pub(crate) trait Socket {
    /// Reads what is there.
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits.
    fn try_write(&self, from: &[u8]) -> io::Result<usize>;
}

/// What came in for a waiter.
pub(crate) type Answer<W> = (W, Result<Body, ServerError>);

/// A connection and those who wait for its answers.
#[derive(Debug)]
pub(crate) struct Pump<S, W> {
    address: SocketAddr,
    socket: S,
    connection: Connection,
    input: Vec<u8>,
    waiting: FxHashMap<u64, W>,
    read_timeout: Duration,
    write_timeout: Duration,
    /// Since when the peer owes us progress in a direction; `None` while it owes nothing.
    read_since: Option<Instant>,
    write_since: Option<Instant>,
}

impl<S: Socket, W> Pump<S, W> {
    /// A pump for a socket that is connected; [`Self::pump`] it until [`Self::hello`] is there.
    pub(crate) fn new(address: SocketAddr, socket: S, options: &ClientOptions) -> Pump<S, W> {
        Pump {
            address,
            socket,
            connection: Connection::new(&options.name, options.in_flight_max),
            input: vec![0; READ_BYTES],
            waiting: FxHashMap::default(),
            read_timeout: options.read_timeout,
            write_timeout: options.write_timeout,
            read_since: None,
            write_since: None,
        }
    }

    pub(crate) fn hello(&self) -> Option<&HelloReply> {
        self.connection.hello()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    /// Queues a request for sending; a waiter that finds no room comes back.
    pub(crate) fn submit(
        &mut self,
        waiter: W,
        call: &Call,
        deadline: Option<u64>,
        left_ms: u32,
    ) -> Result<(), (SubmitError, W)> {
        match self.connection.submit(call, deadline, left_ms) {
            Ok(correlation) => {
                self.waiting.insert(correlation, waiter);
                Ok(())
            }
            Err(error) => Err((error, waiter)),
        }
    }

    /// A waiter whose deadline passed; call until `None`. (The tokio client's calls time themselves.)
    #[cfg(feature = "blocking")]
    pub(crate) fn expire(&mut self, now: u64) -> Option<W> {
        let correlation = self.connection.expire(now)?;
        Some(self.waiting.remove(&correlation).expect("each request in flight has its waiter"))
    }

    #[cfg(feature = "blocking")]
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.connection.next_deadline()
    }

    /// Those who still wait, when the connection is given up.
    pub(crate) fn into_waiting(self) -> impl Iterator<Item = W> {
        self.waiting.into_values()
    }

    pub(crate) fn output_bytes(&self) -> usize {
        self.connection.output().len()
    }

    /// Writes and reads what goes without waiting. `true` if it is worth looking again before waiting.
    pub(crate) fn pump(&mut self, answers: &mut Vec<Answer<W>>) -> Result<bool, ClientError> {
        let wrote = self.write()?;
        let read = self.read(answers)?;
        self.check_timeouts(wrote, read)?;
        Ok(read || (wrote && !self.connection.output().is_empty()))
    }

    fn write(&mut self) -> Result<bool, ClientError> {
        let mut moved = false;
        while !self.connection.output().is_empty() {
            match self.socket.try_write(self.connection.output()) {
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

    fn read(&mut self, answers: &mut Vec<Answer<W>>) -> Result<bool, ClientError> {
        let mut moved = false;
        loop {
            let direct = self.connection.spare();
            let room = direct.as_ref().map_or(self.input.len(), |spare| spare.len());
            let (result, is_direct) = match direct {
                Some(spare) => (self.socket.try_read(spare), true),
                None => (self.socket.try_read(&mut self.input), false),
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
    fn take(&mut self, count: usize, answers: &mut Vec<Answer<W>>) -> Result<(), ClientError> {
        let mut input = &self.input[..count];
        loop {
            match self.connection.receive(&mut input) {
                Ok(None) => return Ok(()),
                Ok(Some(Event::Ready)) => {}
                Ok(Some(Event::Reply { correlation, result })) => {
                    let waiter = self.waiting.remove(&correlation).expect("each request in flight has its waiter");
                    answers.push((waiter, result));
                }
                Err(error) => return Err(ClientError::Protocol { address: self.address, error }),
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "clients run outside of any executor of ours, on real time")]
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
    pub(crate) fn gives_up_at(&self) -> Option<Instant> {
        let read = self.read_since.map(|since| since + self.read_timeout);
        let write = self.write_since.map(|since| since + self.write_timeout);
        read.into_iter().chain(write).min()
    }

    fn lost(&self, detail: &impl ToString) -> ClientError {
        ClientError::disconnected(self.address, detail)
    }
}
