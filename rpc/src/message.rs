//! Which type travels under which [`MessageType`], and which answers which.

use rkyv::api::high::HighDeserializer;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Portable, Serialize};

use crate::body::{Body, BodyError, BodySerializer, BodyValidator, access, short_name};
use crate::frame::MessageType;
use crate::peer::{
    AddLearner, AppendReply, AppendRequest, ChangeMembership, MembershipReply, PeerHello, PeerHelloReply,
    PreVoteRequest, TransferLeaderReply, TransferLeaderRequest, VoteReply, VoteRequest,
};
use crate::schema::{
    Command, ErrorReply, GetGrainReply, GetGrainRequest, GetReply, GetRequest, Hello, HelloReply, RecallReply,
    RecallRequest, ScanReply, ScanRequest, StatusReply, StatusRequest, WriteReply,
};

/// A type that is the body of a frame.
pub trait Message: Archive<Archived: Readable<Self>> + for<'a> Serialize<BodySerializer<'a>> + Sized {
    /// The number it travels under.
    const TYPE: MessageType;
}

/// An archived type that can be checked, read in place and turned back into `T`.
pub trait Readable<T>:
    Portable + for<'a> CheckBytes<BodyValidator<'a>> + Deserialize<T, HighDeserializer<Failure>>
{
}

impl<T, A> Readable<T> for A where
    A: Portable + for<'a> CheckBytes<BodyValidator<'a>> + Deserialize<T, HighDeserializer<Failure>>
{
}

/// A message that asks for an answer.
pub trait RequestMessage: Message {
    /// What a success answers.
    type Reply: Message;
}

/// Copies a message out of its body.
pub fn read<M: Message>(body: &Body) -> Result<M, BodyError> {
    let archived = access::<M::Archived>(body)?;
    rkyv::deserialize::<M, Failure>(archived)
        .map_err(|Failure| BodyError::Invalid { expected: short_name(std::any::type_name::<M>()), length: body.len() })
}

macro_rules! messages {
    ($($message:ident = $number:ident),* $(,)?) => {
        $(impl Message for $message { const TYPE: MessageType = MessageType::$number; })*
    };
}

macro_rules! requests {
    ($($message:ident => $reply:ident),* $(,)?) => {
        $(impl RequestMessage for $message { type Reply = $reply; })*
    };
}

messages! {
    Hello = Hello,
    HelloReply = HelloReply,
    Command = Write,
    WriteReply = WriteReply,
    GetRequest = Get,
    GetReply = GetReply,
    GetGrainRequest = GetGrain,
    GetGrainReply = GetGrainReply,
    ScanRequest = Scan,
    ScanReply = ScanReply,
    RecallRequest = Recall,
    RecallReply = RecallReply,
    StatusRequest = Status,
    StatusReply = StatusReply,
    PeerHello = PeerHello,
    PeerHelloReply = PeerHelloReply,
    PreVoteRequest = PreVote,
    VoteRequest = Vote,
    VoteReply = VoteReply,
    AppendRequest = Append,
    AppendReply = AppendReply,
    TransferLeaderRequest = TransferLeader,
    TransferLeaderReply = TransferLeaderReply,
    AddLearner = AddLearner,
    ChangeMembership = ChangeMembership,
    MembershipReply = MembershipReply,
    ErrorReply = Error,
}

requests! {
    Hello => HelloReply,
    Command => WriteReply,
    GetRequest => GetReply,
    GetGrainRequest => GetGrainReply,
    ScanRequest => ScanReply,
    RecallRequest => RecallReply,
    StatusRequest => StatusReply,
    PeerHello => PeerHelloReply,
    PreVoteRequest => VoteReply,
    VoteRequest => VoteReply,
    AppendRequest => AppendReply,
    TransferLeaderRequest => TransferLeaderReply,
    AddLearner => MembershipReply,
    ChangeMembership => MembershipReply,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_agree_with_the_numbers() {
        fn check<M: RequestMessage>() {
            assert_eq!(M::TYPE.reply(), Some(M::Reply::TYPE));
        }
        check::<Hello>();
        check::<Command>();
        check::<GetRequest>();
        check::<GetGrainRequest>();
        check::<ScanRequest>();
        check::<RecallRequest>();
        check::<StatusRequest>();
        check::<PeerHello>();
        check::<PreVoteRequest>();
        check::<VoteRequest>();
        check::<AppendRequest>();
        check::<TransferLeaderRequest>();
        check::<AddLearner>();
        check::<ChangeMembership>();
        assert_eq!(MessageType::ALL.iter().filter(|message| message.reply().is_some()).count(), 14);
    }
}
