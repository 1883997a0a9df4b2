//! What a caller can set about a client.

use std::time::Duration;

use super::RetryPolicy;
use crate::limits::{IN_FLIGHT_MAX, SESSION_WINDOW};

/// Settings of a client. The defaults suit a server in the same data centre. A time over [`TIME_MAX`] counts as that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// Names this client in the server's logs.
    pub name: String,
    /// One attempt to connect and say hello.
    pub connect_timeout: Duration,
    /// A whole call, retries included.
    pub request_timeout: Duration,
    /// While replies are due: with no byte received for so long, the connection counts as lost.
    pub read_timeout: Duration,
    /// While bytes are to be sent: with none taken for so long, the connection counts as lost.
    pub write_timeout: Duration,
    /// Requests in flight on one connection; lowered to what the server offers.
    pub in_flight_max: u32,
    /// When and how often to try again.
    pub retry: RetryPolicy,
    /// Connect to the core that owns a shard rather than let the first core pass requests on. Where a core's own port
    /// cannot be reached, requests go through the given address.
    pub direct: bool,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            name: concat!("gristmill-rpc ", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            in_flight_max: 1024,
            retry: RetryPolicy::default(),
            direct: true,
        }
    }
}

impl ClientOptions {
    /// The same, with times that can be added to any instant.
    pub(crate) fn clamped(mut self) -> ClientOptions {
        let ClientOptions { connect_timeout, request_timeout, read_timeout, write_timeout, retry, .. } = &mut self;
        let RetryPolicy { backoff_first, backoff_max, .. } = retry;
        for time in [connect_timeout, request_timeout, read_timeout, write_timeout, backoff_first, backoff_max] {
            *time = TIME_MAX.min(*time);
        }
        self
    }
}

/// The longest time that a client waits for anything: a year stands for ever, and can be added to any instant.
pub const TIME_MAX: Duration = Duration::from_hours(365 * 24);

const _: () = assert!(1024 <= IN_FLIGHT_MAX && 1024 <= SESSION_WINDOW);

/// After a core's own port could not be reached, requests go through the given address for so long.
pub(crate) const DIRECT_RETRY_AFTER: Duration = Duration::from_secs(10);
/// One attempt to reach a core's own port: there is another way, so it is short.
pub(crate) const DIRECT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
