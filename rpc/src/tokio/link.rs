//! A connection of the tokio client: one task that owns socket and state machine, and handles that send it calls.
//!
//! ```text
//!   LinkHandle::call ─ permit ─▶ mpsc ─▶ task: Pump ─▶ socket
//!            ◀────────────── oneshot ◀────────┘
//! ```
//!
//! Invariants: a permit stands for one request in flight and is given back when the server has answered it, not when
//! its caller has gone; so callers that give up do not push the connection over its bound. Dropping the future of a call
//! at any point loses only that call's answer. The task ends with the last handle, or when the connection breaks; then
//! every call under way gets the reason.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use ::tokio::io::Interest;
use ::tokio::net::TcpStream;
use ::tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use ::tokio::time::{Instant, sleep_until};

use crate::body::Body;
use crate::client::{ClientError, ClientOptions, Pump, Socket};
use crate::protocol::{Call, SubmitError};
use crate::schema::HelloReply;

/// Calls that wait between handles and task, and calls that the task takes at a time.
const COMMANDS_MAX: usize = 256;

impl Socket for TcpStream {
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        TcpStream::try_read(self, into)
    }

    fn try_write(&self, from: &[u8]) -> io::Result<usize> {
        TcpStream::try_write(self, from)
    }
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Result<Body, ClientError>>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Command {
    call: Call,
    deadline: Instant,
    waiter: Waiter,
}

type Link = Pump<TcpStream, Waiter>;

/// Sends calls over one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LinkHandle {
    commands: mpsc::Sender<Command>,
    permits: Arc<Semaphore>,
    broken: Arc<OnceLock<ClientError>>,
    hello: Arc<HelloReply>,
    address: SocketAddr,
}

impl LinkHandle {
    /// Connects, says hello and starts the task. The caller bounds the time.
    pub(super) async fn open(address: SocketAddr, options: &ClientOptions) -> Result<LinkHandle, ClientError> {
        let connect = |error: io::Error| ClientError::connect(address, &error);
        let stream = TcpStream::connect(address).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let mut pump = Link::new(address, stream, options);
        while pump.hello().is_none() {
            if !pump.pump(&mut Vec::new())? {
                pump.ready().await?;
            }
        }
        let hello = Arc::new(pump.hello().expect("just checked").clone());
        let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
        let in_flight_max = options.in_flight_max.clamp(1, hello.in_flight_max) as usize;
        let handle = LinkHandle {
            commands: sender,
            permits: Arc::new(Semaphore::new(in_flight_max)),
            broken: Arc::new(OnceLock::new()),
            hello,
            address,
        };
        let task = Task { pump, commands: receiver, backlog: VecDeque::new(), permits: handle.permits.clone() };
        ::tokio::spawn(task.run(handle.broken.clone()));
        Ok(handle)
    }

    pub(super) fn hello(&self) -> &HelloReply {
        &self.hello
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn is_broken(&self) -> bool {
        self.commands.is_closed()
    }

    /// Makes a call and waits for its answer; waits for a permit first, which is the backpressure.
    pub(super) async fn call(&self, call: Call, deadline: Instant) -> Result<Body, ClientError> {
        let Ok(permit) = self.permits.clone().acquire_owned().await else { return Err(self.reason()) };
        let (answer, receiver) = oneshot::channel();
        let command = Command { call, deadline, waiter: Waiter { answer, _permit: permit } };
        if self.commands.send(command).await.is_err() {
            return Err(self.reason());
        }
        receiver.await.unwrap_or_else(|_| Err(self.reason()))
    }

    /// Why the connection broke. Without a reason the task was stopped together with its runtime.
    fn reason(&self) -> ClientError {
        self.broken.get().cloned().unwrap_or(ClientError::Closed)
    }
}

impl Link {
    /// Waits until the socket can be read, or written where something is to be sent, or the peer is too slow.
    async fn ready(&self) -> Result<(), ClientError> {
        let interest = Interest::READABLE;
        let interest = if self.output_bytes() > 0 { interest | Interest::WRITABLE } else { interest };
        let ready = self.socket().ready(interest);
        match self.gives_up_at() {
            None => drop(ready.await.map_err(|error| ClientError::disconnected(self.address(), &error))?),
            Some(at) => ::tokio::select! {
                result = ready => drop(result.map_err(|error| ClientError::disconnected(self.address(), &error))?),
                () = sleep_until(at.into()) => {}
            },
        }
        Ok(())
    }
}

struct Task {
    pump: Link,
    commands: mpsc::Receiver<Command>,
    /// Calls that found no room for their bytes, oldest first. While there are any, no more are taken.
    backlog: VecDeque<Command>,
    permits: Arc<Semaphore>,
}

impl Task {
    async fn run(mut self, broken: Arc<OnceLock<ClientError>>) {
        let Err(error) = self.drive().await else { return };
        broken.set(error.clone()).expect("one task, one reason");
        // From here on nobody new gets in; those inside get the reason.
        self.permits.close();
        self.commands.close();
        let Task { pump, mut commands, backlog, .. } = self;
        let queued = std::iter::from_fn(|| commands.try_recv().ok());
        for waiter in pump.into_waiting().chain(backlog.into_iter().chain(queued).map(|command| command.waiter)) {
            let _gone = waiter.answer.send(Err(error.clone()));
        }
    }

    /// Moves calls and bytes until the connection breaks; `Ok` when all handles are gone.
    async fn drive(&mut self) -> Result<(), ClientError> {
        let (mut answers, mut taken) = (Vec::new(), Vec::with_capacity(COMMANDS_MAX));
        loop {
            let moved = self.pump.pump(&mut answers)?;
            for (waiter, result) in answers.drain(..) {
                let _gone = waiter.answer.send(result.map_err(ClientError::Server));
            }
            self.submit_backlog();
            if moved {
                // Calls that came meanwhile go out with the next write.
                while self.backlog.is_empty()
                    && let Ok(command) = self.commands.try_recv()
                {
                    self.submit(command);
                }
                ::tokio::task::yield_now().await;
                continue;
            }
            ::tokio::select! {
                biased;
                count = self.commands.recv_many(&mut taken, COMMANDS_MAX), if self.backlog.is_empty() => {
                    if count == 0 {
                        return Ok(());
                    }
                    taken.drain(..).for_each(|command| self.submit(command));
                }
                result = self.pump.ready() => result?,
            }
        }
    }

    fn submit_backlog(&mut self) {
        for _ in 0..self.backlog.len() {
            let command = self.backlog.pop_front().expect("counted");
            self.submit(command);
        }
    }

    fn submit(&mut self, command: Command) {
        let Command { call, deadline, waiter } = command;
        if waiter.answer.is_closed() {
            return; // nobody waits any more, and nothing was sent
        }
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let left_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
        match self.pump.submit(waiter, &call, None, left_ms) {
            Ok(()) => {}
            Err((SubmitError::Full { .. }, waiter)) => self.backlog.push_back(Command { call, deadline, waiter }),
            Err((error, waiter)) => {
                let _gone = waiter.answer.send(Err(error.into()));
            }
        }
    }
}
