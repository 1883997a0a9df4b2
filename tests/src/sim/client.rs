//! One client connection over the real protocol: the sans-I/O core of `rpc` on the executor's TCP.
//!
//! One request at a time, as a process of a history must. A request whose answer does not come in time leaves the connection behind:
//! what arrives on it later answers nobody, and the server may still serve what it got.

use gristmill_rpc::body::Body;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::protocol::{Call, Connection, Event, ServerError};
use gristmill_rpc::schema::HelloReply;
use gristmill_shardexec::net::TcpStream;
use gristmill_shardexec::time::timeout;
use std::net::SocketAddr;
use std::time::Duration;

/// Requests in flight on a connection: one.
const IN_FLIGHT: u32 = 1;
/// Bytes that one receive takes.
const RECEIVE_BYTES: usize = 16 << 10;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// It was never sent.
    Unsent(String),
    /// It was sent, in part at least, and nobody knows what became of it.
    Lost(String),
    /// The server answered with an error.
    Refused(ServerError),
}

impl Missed {
    /// Whether this sending of a write certainly has no effect, now or later.
    pub fn is_without_effect(&self) -> bool {
        use ErrorCode as E;
        match self {
            Missed::Unsent(_) => true,
            Missed::Lost(_) => false,
            Missed::Refused(error) => match error.code {
                // Refused before it was proposed.
                Some(
                    E::Recovering
                    | E::Overloaded
                    | E::NotLeader
                    | E::WrongShard
                    | E::DiskFull
                    | E::CrossShard
                    | E::TooLarge
                    | E::InvalidArgument
                    | E::WrongDimension
                    | E::BadFrame
                    | E::BadBody
                    | E::UnsupportedVersion
                    | E::UnsupportedSchema
                    | E::UnknownMessage
                    | E::UnknownNamespace,
                ) => true,
                // May concern what was proposed already, or says itself that it is unknown.
                _ => false,
            },
        }
    }
}

/// A connection that said hello.
pub struct Link {
    stream: TcpStream,
    protocol: Connection,
    address: SocketAddr,
}

impl Link {
    /// Connects and says hello.
    pub async fn open(address: SocketAddr, name: &str, patience: Duration) -> Result<Link, Missed> {
        let unsent = |text: String| Missed::Unsent(format!("{address}: {text}"));
        let opening = async {
            let stream = TcpStream::connect(address).await.map_err(|error| unsent(error.to_string()))?;
            let mut link = Link { stream, protocol: Connection::new(name, IN_FLIGHT), address };
            match link.turn().await {
                Ok(Event::Ready) => Ok(link),
                Ok(Event::Reply { .. }) => Err(unsent("a reply before the hello".to_owned())),
                Err(text) => Err(unsent(text)),
            }
        };
        timeout(patience, opening).await.unwrap_or_else(|_| Err(unsent("no hello in time".to_owned())))
    }

    /// What the server said of itself.
    pub fn hello(&self) -> &HelloReply {
        self.protocol.hello().expect("a link has said hello")
    }

    /// Where it leads.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and waits for its answer. The link is gone afterwards unless an answer came.
    pub async fn call(mut self, call: &Call, patience: Duration) -> (Option<Link>, Result<Body, Missed>) {
        let deadline_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = self.protocol.submit(call, None, deadline_ms) {
            return (None, Err(Missed::Unsent(error.to_string())));
        }
        let lost = |text: String| Err(Missed::Lost(text));
        match timeout(patience, self.turn()).await {
            Ok(Ok(Event::Reply { result, .. })) => (Some(self), result.map_err(Missed::Refused)),
            Ok(Ok(Event::Ready)) => (None, lost("a second hello".to_owned())),
            Ok(Err(text)) => (None, lost(text)),
            Err(_) => (None, lost("no answer in time".to_owned())),
        }
    }

    /// Sends what there is and receives until something came in.
    async fn turn(&mut self) -> Result<Event, String> {
        let output = self.protocol.output().to_vec();
        self.protocol.advance_output(output.len());
        if !output.is_empty() {
            self.stream.send_all(output).await.0.map_err(|error| error.to_string())?;
        }
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            let received;
            (received, buffer) = self.stream.recv(buffer).await;
            match received {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
            let event = self.protocol.receive(&mut &buffer[..]).map_err(|error| error.to_string())?;
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }
}
