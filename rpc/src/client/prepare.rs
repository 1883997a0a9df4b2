//! From a message to what can be sent: archive it once, check it, find its shard.

use super::ClientError;
use crate::body::{Body, try_archive};
use crate::error::Rejection;
use crate::frame::MessageType;
use crate::ids::ShardId;
use crate::message::RequestMessage;
use crate::ring::Ring;
use crate::validate::message_body;

/// A request that keeps to the rules, archived.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) message: MessageType,
    pub(crate) body: Body,
    pub(crate) shard: ShardId,
}

/// Archives and checks a message. The rules are the server's own, so what passes here is not refused there.
pub(crate) fn prepare<M: RequestMessage>(message: &M, ring: &Ring) -> Result<Prepared, ClientError> {
    let invalid = |rejection: Rejection| ClientError::Invalid(rejection);
    let body = try_archive(message).map_err(|error| invalid(error.into()))?;
    let request = message_body(M::TYPE, &body).map_err(invalid)?;
    let shard = request.owner(ring).map_err(invalid)?.unwrap_or(ShardId::ANY);
    Ok(Prepared { message: M::TYPE, body, shard })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::schema::{GetRequest, StatusRequest};

    #[test]
    fn requests_are_checked_and_routed_before_they_are_sent() {
        let ring = Ring::new(8, 150);
        let get = |key: &[u8]| prepare(&GetRequest { namespace: "b".to_owned(), key: key.to_vec() }, &ring);
        assert_eq!(get(b"k").expect("valid").shard, ShardId(3));
        let error = get(b"").expect_err("an empty key");
        assert_eq!((error.code(), error.retriable()), (Some(ErrorCode::InvalidArgument), false));
        assert_eq!(prepare(&StatusRequest { verbose: false }, &ring).expect("valid").shard, ShardId::ANY);
    }
}
