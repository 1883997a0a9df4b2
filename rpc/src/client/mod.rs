//! What the blocking and the tokio client share.
//!
//! Pure decisions: prepare a request (archive, check, find the shard), number writes in a session, decide on retries,
//! route to cores, and the one error type. And the pump that moves bytes between a socket that never waits and the
//! protocol's state machine. The clients add the waiting.

mod address;
mod entropy;
mod error;
mod options;
mod prepare;
mod pump;
mod retry;
mod route;
mod session;

pub use error::ClientError;
pub use options::{ClientOptions, TIME_MAX};
pub use retry::{Jitter, RetryPolicy};
pub use route::RouteMap;
pub use session::Session;

pub(crate) use address::{Addresses, Target, direct_address};
pub(crate) use entropy::random_u64;
pub(crate) use options::{DIRECT_CONNECT_TIMEOUT, DIRECT_RETRY_AFTER};
pub(crate) use prepare::prepare;
#[cfg(feature = "blocking")]
pub(crate) use pump::Answer;
pub(crate) use pump::{Pump, Socket};
pub(crate) use route::MapDoubt;
