//! What the blocking and the tokio client share: pure decisions, without sockets and clocks.
//!
//! Prepare (archive, check, find the shard), number writes in a session, decide on retries, route to cores, and the
//! one error type. The clients add sockets and time.

mod entropy;
mod error;
mod options;
mod prepare;
mod retry;
mod route;
mod session;

pub use error::ClientError;
pub use options::ClientOptions;
pub use retry::{Jitter, RetryPolicy};
pub use route::RouteMap;
pub use session::Session;

pub(crate) use entropy::random_u64;
pub(crate) use options::{DIRECT_CONNECT_TIMEOUT, DIRECT_RETRY_AFTER, READ_BYTES};
pub(crate) use prepare::prepare;
