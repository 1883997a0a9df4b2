//! A blocking client: plain sockets, one thread, pipelining.
//!
//! ```text
//!   put, get, recall … ─▶ submit ─▶ engine (tickets, retries) ─▶ link per core ─▶ poll(2)
//! ```
//!
//! A [`Client`] keeps one connection to the given address and opens further ones to the cores that own the shards it
//! uses. Calls that fail for a passing reason are retried with the same session and sequence until their time is up,
//! so a write applies once however often it was sent.
//!
//! ```no_run
//! use gristmill_rpc::blocking::Client;
//! # fn main() -> Result<(), gristmill_rpc::client::ClientError> {
//! let mut client = Client::connect("127.0.0.1:7171")?;
//! client.put("tenant-7", b"k", b"v")?;
//! assert_eq!(client.get("tenant-7", b"k")?.expect("just written").value, b"v");
//! # Ok(())
//! # }
//! ```

#![allow(clippy::disallowed_methods, reason = "a client runs on its caller's thread, with real sockets and time")]

mod engine;
mod link;

use std::marker::PhantomData;
use std::sync::Arc;

use engine::{Engine, Slot};

use crate::body::Body;
use crate::client::{ClientError, ClientOptions, RouteMap, prepare};
use crate::frame::MessageType;
use crate::ids::{GrainId, SessionId, Version};
use crate::message::{Message, RequestMessage, read};
use crate::protocol::Call;
use crate::schema::{
    Command, Expected, GetGrainReply, GetGrainRequest, GetReply, GetRequest, Grain, Operation, RecallReply,
    RecallRequest, ScanReply, ScanRequest, StatusRequest, Versioned, WriteReply,
};

/// A connection to a gristmill server.
#[derive(Debug)]
pub struct Client {
    engine: Engine,
}

/// A call under way. [`Client::wait`] gives its answer; dropping the ticket drops the answer, not the call.
#[derive(Debug)]
pub struct Ticket<R> {
    number: u64,
    call: Call,
    slot: Arc<Slot>,
    reply: PhantomData<fn() -> R>,
}

impl Client {
    /// Connects to `host:port` with the default options.
    pub fn connect(address: &str) -> Result<Client, ClientError> {
        Client::connect_with(address, ClientOptions::default())
    }

    /// Connects to `host:port`. When none of the host's addresses can be reached any more, the name is looked up
    /// again, which may take longer than a call's own time where the system's resolver is slow.
    pub fn connect_with(address: &str, options: ClientOptions) -> Result<Client, ClientError> {
        Ok(Client { engine: Engine::connect(address, options)? })
    }

    /// What the server said of its shards, cores and ports.
    pub fn map(&self) -> &RouteMap {
        self.engine.map()
    }

    /// The session that numbers this client's writes.
    pub fn session(&self) -> SessionId {
        self.engine.session()
    }

    /// Starts a call and returns at once, unless as many calls are pending as may be in flight.
    ///
    /// The request is sent with others: at the latest by the next [`Self::wait`] or [`Self::flush`].
    pub fn submit<M: RequestMessage>(&mut self, message: &M) -> Result<Ticket<M::Reply>, ClientError> {
        let prepared = prepare(message, &self.engine.map().ring)?;
        let is_write = prepared.message == MessageType::Write;
        let (session, sequence) =
            if is_write { (self.engine.session(), self.engine.begin_write()) } else { (SessionId::NONE, 0) };
        let (message, body, shard) = (prepared.message, prepared.body, prepared.shard);
        Ok(self.submit_call(Call { message, body, shard, session, sequence }))
    }

    /// Starts the call of a ticket again, under its old session and sequence: a write that did happen is not repeated.
    /// For after a [`ClientError::Timeout`].
    pub fn resubmit<R: Message>(&mut self, ticket: &Ticket<R>) -> Ticket<R> {
        if ticket.call.session == self.session() {
            self.engine.reopen_write(ticket.call.sequence);
        }
        self.submit_call(ticket.call.clone())
    }

    fn submit_call<R>(&mut self, call: Call) -> Ticket<R> {
        let (number, slot) = self.engine.submit(call.clone());
        Ticket { number, call, slot, reply: PhantomData }
    }

    /// Sends what was submitted, without waiting for answers.
    pub fn flush(&mut self) {
        self.engine.flush();
    }

    /// Waits for a call's answer.
    pub fn wait<R: Message>(&mut self, ticket: &Ticket<R>) -> Result<R, ClientError> {
        read(&self.wait_body(ticket)?).map_err(ClientError::BadReply)
    }

    /// Waits for a call's answer and gives its body as it came, to be read in place.
    pub fn wait_body<R: Message>(&mut self, ticket: &Ticket<R>) -> Result<Body, ClientError> {
        self.engine.wait(ticket.number, &ticket.slot)
    }

    /// Makes a call and waits for its answer.
    pub fn call<M: RequestMessage>(&mut self, message: &M) -> Result<M::Reply, ClientError> {
        let ticket = self.submit(message)?;
        self.wait(&ticket)
    }

    /// Stores a value under a key.
    pub fn put(&mut self, namespace: &str, key: &[u8], value: &[u8]) -> Result<Version, ClientError> {
        self.batch(vec![Operation::put(namespace, key, value)]).map(|reply| reply.version)
    }

    /// The value under a key.
    pub fn get(&mut self, namespace: &str, key: &[u8]) -> Result<Option<Versioned>, ClientError> {
        let request = GetRequest { namespace: namespace.to_owned(), key: key.to_vec() };
        self.call(&request).map(|GetReply { value }| value)
    }

    /// Removes the value under a key, if there is one.
    pub fn delete(&mut self, namespace: &str, key: &[u8]) -> Result<Version, ClientError> {
        self.batch(vec![Operation::delete(namespace, key)]).map(|reply| reply.version)
    }

    /// Stores (or with `None` removes) the value under a key, if the key is as expected; `applied` says whether.
    pub fn cas(
        &mut self,
        namespace: &str,
        key: &[u8],
        expected: Expected,
        value: Option<&[u8]>,
    ) -> Result<WriteReply, ClientError> {
        self.batch(vec![Operation::compare_and_set(namespace, key, expected, value)])
    }

    /// Applies several operations of one shard as a whole or not at all.
    pub fn batch(&mut self, operations: Vec<Operation>) -> Result<WriteReply, ClientError> {
        self.call(&Command { operations })
    }

    /// Values of one namespace in key order.
    pub fn scan(&mut self, request: &ScanRequest) -> Result<ScanReply, ClientError> {
        self.call(request)
    }

    /// Stores a grain, replacing any of the same namespace and id.
    pub fn put_grain(&mut self, grain: Grain) -> Result<Version, ClientError> {
        self.batch(vec![Operation::PutGrain { grain }]).map(|reply| reply.version)
    }

    /// One grain and its version.
    pub fn get_grain(&mut self, namespace: &str, id: GrainId) -> Result<Option<(Grain, Version)>, ClientError> {
        let GetGrainReply { grain, version } = self.call(&GetGrainRequest { namespace: namespace.to_owned(), id })?;
        Ok(grain.map(|grain| (grain, version)))
    }

    /// Removes a grain, if there is one.
    pub fn delete_grain(&mut self, namespace: &str, id: GrainId) -> Result<Version, ClientError> {
        let namespace = namespace.to_owned();
        self.batch(vec![Operation::DeleteGrain { namespace, id }]).map(|reply| reply.version)
    }

    /// The best grains for a query.
    pub fn recall(&mut self, request: &RecallRequest) -> Result<RecallReply, ClientError> {
        self.call(request)
    }

    /// The server's state as one JSON object.
    pub fn status(&mut self, verbose: bool) -> Result<String, ClientError> {
        self.call(&StatusRequest { verbose }).map(|reply| reply.json)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
