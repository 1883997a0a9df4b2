//! A tokio client: cloneable, one task per connection, pipelining by concurrent calls.
//!
//! ```text
//!   Client (clones) ─▶ Pool: route, retry ─▶ LinkHandle per core ─▶ task: Pump ─▶ socket
//! ```
//!
//! Every method may be called from many tasks at once; calls share connections and are pipelined. Calls that fail for a passing
//! reason are retried with the same session and sequence until their time is up, so a write applies once however often
//! it was sent. Dropping a call's future gives the call up: a write may or may not happen then, as with a lost connection.
//!
//! ```no_run
//! # async fn example() -> Result<(), gristmill_rpc::client::ClientError> {
//! use gristmill_rpc::tokio::Client;
//! let client = Client::connect("127.0.0.1:7171").await?;
//! client.put("tenant-7", b"k", b"v").await?;
//! assert_eq!(client.get("tenant-7", b"k").await?.expect("just written").value, b"v");
//! # Ok(())
//! # }
//! ```

mod link;
mod pool;

use std::sync::Arc;

use pool::Pool;

use crate::body::Body;
use crate::client::{ClientError, ClientOptions, RouteMap, prepare};
use crate::frame::MessageType;
use crate::ids::{GrainId, SessionId, Version};
use crate::message::{RequestMessage, read};
use crate::protocol::Call;
use crate::schema::{
    Command, Expected, GetGrainReply, GetGrainRequest, GetReply, GetRequest, Grain, Operation, RecallReply,
    RecallRequest, ScanReply, ScanRequest, StatusRequest, Versioned, WriteReply,
};

/// A connection to a gristmill server. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

impl Client {
    /// Connects to `host:port` with the default options. Must run inside a tokio runtime, as all methods.
    pub async fn connect(address: &str) -> Result<Client, ClientError> {
        Client::connect_with(address, ClientOptions::default()).await
    }

    /// Connects to `host:port`. When none of the host's addresses can be reached any more, the name is looked up again.
    pub async fn connect_with(address: &str, options: ClientOptions) -> Result<Client, ClientError> {
        Ok(Client { pool: Arc::new(Pool::connect(address, options).await?) })
    }

    /// What the server said of its shards, cores and ports.
    pub fn map(&self) -> Arc<RouteMap> {
        self.pool.map()
    }

    /// The session that numbers this client's writes, those of its clones included.
    pub fn session(&self) -> SessionId {
        self.pool.session()
    }

    /// Makes a call and gives its answer.
    pub async fn call<M: RequestMessage>(&self, message: &M) -> Result<M::Reply, ClientError> {
        read(&self.call_body(message).await?).map_err(ClientError::BadReply)
    }

    /// Makes a call and gives its answer's body as it came, to be read in place.
    pub async fn call_body<M: RequestMessage>(&self, message: &M) -> Result<Body, ClientError> {
        let prepared = prepare(message, &self.pool.map().ring)?;
        let (message, body, shard) = (prepared.message, prepared.body, prepared.shard);
        let deadline = self.pool.deadline();
        if message != MessageType::Write {
            let call = Call { message, body, shard, session: SessionId::NONE, sequence: 0 };
            return self.pool.call(call, deadline).await;
        }
        let sequence = self.pool.begin_write(deadline).await?;
        let call = Call { message, body, shard, session: self.pool.session(), sequence: sequence.number };
        self.pool.call(call, deadline).await
    }

    /// Stores a value under a key.
    pub async fn put(&self, namespace: &str, key: &[u8], value: &[u8]) -> Result<Version, ClientError> {
        self.batch(vec![Operation::put(namespace, key, value)]).await.map(|reply| reply.version)
    }

    /// The value under a key.
    pub async fn get(&self, namespace: &str, key: &[u8]) -> Result<Option<Versioned>, ClientError> {
        let request = GetRequest { namespace: namespace.to_owned(), key: key.to_vec() };
        self.call(&request).await.map(|GetReply { value }| value)
    }

    /// Removes the value under a key, if there is one.
    pub async fn delete(&self, namespace: &str, key: &[u8]) -> Result<Version, ClientError> {
        self.batch(vec![Operation::delete(namespace, key)]).await.map(|reply| reply.version)
    }

    /// Stores (or with `None` removes) the value under a key, if the key is as expected; `applied` says whether.
    pub async fn cas(
        &self,
        namespace: &str,
        key: &[u8],
        expected: Expected,
        value: Option<&[u8]>,
    ) -> Result<WriteReply, ClientError> {
        self.batch(vec![Operation::compare_and_set(namespace, key, expected, value)]).await
    }

    /// Applies several operations of one shard as a whole or not at all.
    pub async fn batch(&self, operations: Vec<Operation>) -> Result<WriteReply, ClientError> {
        self.call(&Command { operations }).await
    }

    /// Values of one namespace in key order.
    pub async fn scan(&self, request: &ScanRequest) -> Result<ScanReply, ClientError> {
        self.call(request).await
    }

    /// Stores a grain, replacing any of the same namespace and id.
    pub async fn put_grain(&self, grain: Grain) -> Result<Version, ClientError> {
        self.batch(vec![Operation::PutGrain { grain }]).await.map(|reply| reply.version)
    }

    /// One grain and its version.
    pub async fn get_grain(&self, namespace: &str, id: GrainId) -> Result<Option<(Grain, Version)>, ClientError> {
        let request = GetGrainRequest { namespace: namespace.to_owned(), id };
        let GetGrainReply { grain, version } = self.call(&request).await?;
        Ok(grain.map(|grain| (grain, version)))
    }

    /// Removes a grain, if there is one.
    pub async fn delete_grain(&self, namespace: &str, id: GrainId) -> Result<Version, ClientError> {
        let namespace = namespace.to_owned();
        self.batch(vec![Operation::DeleteGrain { namespace, id }]).await.map(|reply| reply.version)
    }

    /// The best grains for a query.
    pub async fn recall(&self, request: &RecallRequest) -> Result<RecallReply, ClientError> {
        self.call(request).await
    }

    /// The server's state as one JSON object.
    pub async fn status(&self, verbose: bool) -> Result<String, ClientError> {
        self.call(&StatusRequest { verbose }).await.map(|reply| reply.json)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
