//! The one error of all clients.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::body::BodyError;
use crate::error::{ErrorCode, Rejection};
use crate::protocol::{ConnectionError, ServerError, SubmitError};

/// Why a call of a client failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server's name is no address, or has none.
    #[error("cannot resolve {address:?}: {detail}; give host:port")]
    Address {
        /// What was given.
        address: String,
        /// What the system said.
        detail: String,
    },
    /// No connection came about.
    #[error("cannot connect to {address}: {detail}; is the server running there?")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// The system's kind of error.
        kind: io::ErrorKind,
        /// What the system said.
        detail: String,
    },
    /// The connection broke while the call was under way.
    #[error("lost the connection to {address}: {detail}")]
    Disconnected {
        /// Where to.
        address: SocketAddr,
        /// What happened.
        detail: String,
    },
    /// What the server at this address says cannot be used.
    #[error("connection to {address}: {error}")]
    Protocol {
        /// Where to.
        address: SocketAddr,
        /// Why.
        error: ConnectionError,
    },
    /// The address now leads to another store than at first: its sessions and data are not those of before.
    #[error("the server at {address} serves another store than before; connect anew if that is intended")]
    StoreChanged {
        /// Where to.
        address: SocketAddr,
    },
    /// The server answered with an error.
    #[error("{0}")]
    Server(ServerError),
    /// The request breaks a rule, so it was not sent.
    #[error("{0}")]
    Invalid(Rejection),
    /// The answer is no archive of its type.
    #[error("the server's answer cannot be read: {0}")]
    BadReply(BodyError),
    /// The overall time is up. A write may or may not have happened; resubmitting its ticket applies it at most once.
    #[error("no answer within {after:?} and {attempts} attempts{}", last.as_ref().map_or(String::new(), |last| format!("; the last failed: {last}")))]
    Timeout {
        /// The time that was allowed.
        after: Duration,
        /// How often the request was sent or tried to be sent.
        attempts: u32,
        /// Why the last attempt failed, where it did.
        last: Option<Box<ClientError>>,
    },
    /// The ticket's answer was already taken, or the ticket is another client's.
    #[error("this ticket waits for nothing; each ticket is answered once, by the client that gave it")]
    UnknownTicket,
    /// The client's background task is gone: its runtime was shut down.
    #[error("the client is closed; its runtime was shut down")]
    Closed,
}

impl ClientError {
    /// Whether the same call may succeed later, unchanged. Clients retry these by themselves until the call's time is
    /// up, so what reaches the caller has been tried.
    pub fn retriable(&self) -> bool {
        match self {
            ClientError::Server(error) | ClientError::Protocol { error: ConnectionError::Refused(error), .. } => {
                error.retriable
            }
            ClientError::Protocol { error, .. } => {
                // Damage on the way is gone with the connection; a peer that speaks otherwise is not.
                matches!(error, ConnectionError::Frame(frame) if frame.code() == ErrorCode::BadFrame)
            }
            ClientError::Connect { .. } | ClientError::Disconnected { .. } | ClientError::Timeout { .. } => true,
            ClientError::Address { .. }
            | ClientError::StoreChanged { .. }
            | ClientError::Invalid(_)
            | ClientError::BadReply(_)
            | ClientError::UnknownTicket
            | ClientError::Closed => false,
        }
    }

    /// The protocol's code, where the error has one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Server(error) | ClientError::Protocol { error: ConnectionError::Refused(error), .. } => {
                error.code
            }
            ClientError::Protocol { error: ConnectionError::Frame(frame), .. } => Some(frame.code()),
            ClientError::Invalid(rejection) => Some(rejection.code),
            ClientError::Timeout { last, .. } => {
                Some(last.as_deref().and_then(ClientError::code).unwrap_or(ErrorCode::DeadlineExceeded))
            }
            _ => None,
        }
    }

    /// The server's advice how long to wait, in milliseconds; 0 means none.
    pub fn retry_after_ms(&self) -> u32 {
        match self {
            ClientError::Server(error) | ClientError::Protocol { error: ConnectionError::Refused(error), .. } => {
                error.retry_after_ms
            }
            _ => 0,
        }
    }

    pub(crate) fn connect(address: SocketAddr, error: &io::Error) -> ClientError {
        ClientError::Connect { address, kind: error.kind(), detail: error.to_string() }
    }

    pub(crate) fn hello_timed_out(address: SocketAddr) -> ClientError {
        let detail = "connected, but no answer to the hello in time".to_owned();
        ClientError::Connect { address, kind: io::ErrorKind::TimedOut, detail }
    }

    pub(crate) fn disconnected(address: SocketAddr, detail: &impl ToString) -> ClientError {
        ClientError::Disconnected { address, detail: detail.to_string() }
    }
}

impl From<SubmitError> for ClientError {
    /// # Panics
    /// If the connection is full or not ready: that is waited for, not told.
    fn from(error: SubmitError) -> ClientError {
        assert!(matches!(error, SubmitError::TooLarge { .. }), "{error}");
        ClientError::Invalid(Rejection::new(ErrorCode::TooLarge, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameError;

    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7000))
    }

    fn server(code: ErrorCode) -> ServerError {
        Rejection::new(code, "what happened").retry_after_ms(7).to_reply().into()
    }

    #[test]
    fn servers_decide_what_is_retriable() {
        for code in ErrorCode::ALL {
            let error = ClientError::Server(server(code));
            assert_eq!((error.retriable(), error.code(), error.retry_after_ms()), (code.retriable(), Some(code), 7));
            let refused = ConnectionError::Refused(server(code));
            let error = ClientError::Protocol { address: address(), error: refused };
            assert_eq!((error.retriable(), error.code()), (code.retriable(), Some(code)));
        }
    }

    #[test]
    fn damage_is_retriable_and_foreign_peers_are_not() {
        let protocol = |error| ClientError::Protocol { address: address(), error: ConnectionError::Frame(error) };
        assert!(protocol(FrameError::BodyCrc { found: 1, computed: 2 }).retriable());
        assert!(!protocol(FrameError::Version { found: 2 }).retriable());
        assert_eq!(protocol(FrameError::Version { found: 2 }).code(), Some(ErrorCode::UnsupportedVersion));
    }

    #[test]
    fn a_timeout_tells_the_last_failure() {
        let last = Some(Box::new(ClientError::Server(server(ErrorCode::Recovering))));
        let error = ClientError::Timeout { after: Duration::from_secs(3), attempts: 4, last };
        assert_eq!(error.code(), Some(ErrorCode::Recovering));
        assert_eq!(error.to_string(), "no answer within 3s and 4 attempts; the last failed: what happened");
        let error = ClientError::Timeout { after: Duration::from_secs(3), attempts: 1, last: None };
        assert_eq!((error.code(), error.retriable()), (Some(ErrorCode::DeadlineExceeded), true));
    }
}
