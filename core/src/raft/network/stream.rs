//! Several appends under way to one replica.
//!
//! ```text
//!   openraft's requests ──► sent in order, up to PIPELINE_MAX unanswered ──► answers in the same order ──► openraft
//! ```
//!
//! openraft takes a success for the answer to everything that it has sent up to the same entry, and counts the lease from
//! when it sent the last of that: also requests which only tell of a commit, and which the follower has not yet received.
//! So a success is told only where nothing unanswered ends at the same entry, else the success of the last that does.
//!
//! Ends with the first answer that is no success, as openraft's own sequential stream does; what was sent behind it is
//! forgotten, for the follower cannot have taken it.

use super::{Answer, PeerClient, Rpc};
use crate::raft::types::{RaftLogId, TypeConfig};
use futures_util::{Stream, StreamExt};
use gristmill_rpc::peer::AppendReply;
use gristmill_shardexec::time::{Sleep, sleep};
use openraft::RPCTypes;
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Appends of one stream without an answer.
pub(super) const PIPELINE_MAX: usize = 64;
/// Bytes of commands in them, unless one append alone has more.
pub(super) const PIPELINE_BYTES_MAX: usize = 4 << 20;

pub(super) struct AppendStream<'s, S> {
    client: &'s PeerClient,
    /// `None` once it has ended, or must not be asked any more.
    input: Option<S>,
    unanswered: VecDeque<Unanswered>,
    bytes: usize,
    /// A success waits for that of the oldest unanswered append, which tells openraft more; nothing is sent meanwhile.
    withheld: bool,
    /// Runs while the oldest append waits for its answer.
    silence: Option<Pin<Box<Sleep>>>,
    silence_max: Duration,
}

struct Unanswered {
    previous: Option<RaftLogId>,
    last: Option<RaftLogId>,
    bytes: usize,
    answer: Answer,
}

type Item = Rpc<StreamAppendResult<TypeConfig>>;

impl<'s, S> AppendStream<'s, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    pub(super) fn new(client: &'s PeerClient, input: S, silence_max: Duration) -> AppendStream<'s, S> {
        let unanswered = VecDeque::new();
        AppendStream { client, input: Some(input), unanswered, bytes: 0, withheld: false, silence: None, silence_max }
    }

    /// Sends what openraft has to send, as far as the pipeline has room.
    fn fill(&mut self, cx: &mut Context<'_>) -> Rpc<()> {
        while self.unanswered.len() < PIPELINE_MAX
            && self.bytes < PIPELINE_BYTES_MAX
            && let Some(input) = &mut self.input
        {
            match input.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => {
                    let bytes = request.entries.iter().map(crate::raft::codec::payload_bytes).sum();
                    let previous = request.prev_log_id;
                    let last = request.entries.last().map(|entry| entry.log_id).or(previous);
                    let answer = self.client.send_append(&request, self.silence_max)?;
                    self.bytes += bytes;
                    self.unanswered.push_back(Unanswered { previous, last, bytes, answer });
                }
                Poll::Ready(None) => self.input = None,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Takes the answer to the oldest append: `None` where openraft must not be told of it.
    fn settle(&mut self, answer: Result<AppendReply, RPCError<TypeConfig>>) -> Option<Item> {
        let sent = self.unanswered.pop_front().expect("the oldest one was answered");
        self.bytes -= sent.bytes;
        self.silence = None;
        let item = self.result_of(&sent, answer);
        self.withheld = matches!(item, Ok(Ok(_))) && self.unanswered.front().is_some_and(|next| next.last <= sent.last);
        (!self.withheld).then_some(item)
    }

    fn result_of(&self, sent: &Unanswered, answer: Result<AppendReply, RPCError<TypeConfig>>) -> Item {
        let response = self.client.read_append(&answer?)?;
        if matches!(response, AppendEntriesResponse::Conflict) && sent.previous.is_none() {
            return Err(self.client.bad_answer("a conflict before the beginning of the log".to_owned()));
        }
        Ok(response.into_stream_result(sent.previous, sent.last))
    }

    /// The result of the oldest append that openraft is to be told of.
    fn poll_oldest(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        while let Some(oldest) = self.unanswered.front_mut() {
            match Pin::new(&mut oldest.answer).poll(cx) {
                Poll::Ready(answer) => {
                    let answer = self.client.receive::<AppendReply>(answer);
                    if let Some(item) = self.settle(answer) {
                        return Poll::Ready(item);
                    }
                }
                Poll::Pending if self.is_silent(cx) => {
                    return Poll::Ready(Err(self.client.timed_out(RPCTypes::AppendEntries, self.silence_max)));
                }
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn end(&mut self) {
        self.input = None;
        self.unanswered.clear();
        self.silence = None;
    }

    /// Whether the oldest append has waited for too long.
    fn is_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let silence_max = self.silence_max;
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(silence_max)));
        silence.as_mut().poll(cx).is_ready()
    }
}

impl<S> Stream for AppendStream<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let this = self.get_mut();
        // An answer that is here comes first: a request sent before it is told would count as answered.
        let mut polled = this.poll_oldest(cx);
        if polled.is_pending() && !this.withheld {
            let nothing_waited = this.unanswered.is_empty();
            if let Err(error) = this.fill(cx) {
                polled = Poll::Ready(Err(error));
            } else if nothing_waited && !this.unanswered.is_empty() {
                // Nobody would be woken for it otherwise.
                polled = this.poll_oldest(cx);
            }
        }
        match polled {
            Poll::Ready(item) => {
                if !matches!(item, Ok(Ok(_))) {
                    this.end();
                }
                Poll::Ready(Some(item))
            }
            Poll::Pending if this.unanswered.is_empty() && this.input.is_none() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::{CallError, PeerStats};
    use super::*;
    use crate::raft::types::{ReplicaId, to_log_id};
    use futures_util::stream;
    use gristmill_rpc::body::{Body, archive};
    use gristmill_rpc::ids::ShardId;
    use gristmill_shardexec::sync::oneshot;
    use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};
    use gristmill_wal::LogPosition;
    use std::rc::Rc;

    type Requests = stream::Iter<std::vec::IntoIter<AppendEntriesRequest<TypeConfig>>>;
    type Answering = oneshot::Sender<Result<Body, CallError>>;

    const LEADER: ReplicaId = ReplicaId { node: 1, incarnation: 1 };

    fn at(index: u64) -> RaftLogId {
        to_log_id(LogPosition { term: 3, index })
    }

    fn under_way(stream: &mut AppendStream<'_, Requests>, from: u64, to: u64) -> Answering {
        let (sender, answer) = oneshot::channel();
        stream.unanswered.push_back(Unanswered { previous: Some(at(from)), last: Some(at(to)), bytes: 0, answer });
        sender
    }

    fn succeed(answering: Answering) {
        let response = AppendEntriesResponse::<TypeConfig>::Success;
        answering.send(Ok(archive(&super::super::wire::append_reply(&response)))).unwrap();
    }

    /// What the stream gives when it is polled once; `None` where it gives nothing yet.
    async fn given(stream: &mut AppendStream<'_, Requests>) -> Option<Item> {
        std::future::poll_fn(|cx| match stream.poll_next_unpin(cx) {
            Poll::Ready(item) => Poll::Ready(item),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn with_stream(more: Vec<AppendEntriesRequest<TypeConfig>>, test: impl AsyncFnOnce(AppendStream<'_, Requests>)) {
        let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
        Executor::start(config).unwrap().block_on(async {
            let target = ReplicaId { node: 2, incarnation: 1 };
            let stats = Rc::new(PeerStats::default());
            let client = PeerClient { shard: ShardId(3), own: LEADER, target, link: None, stats };
            test(AppendStream::new(&client, stream::iter(more), Duration::from_mins(1))).await;
        });
    }

    /// The leader counted its lease from a request that the follower had not received.
    #[test]
    fn a_success_does_not_answer_for_a_later_request_that_ends_at_the_same_entry() {
        with_stream(Vec::new(), async |mut stream| {
            let entries = under_way(&mut stream, 5, 10);
            let commit = under_way(&mut stream, 10, 10);
            let more = under_way(&mut stream, 10, 12);
            succeed(entries);
            assert!(given(&mut stream).await.is_none(), "the request that tells of the commit is not answered");
            succeed(commit);
            let item = given(&mut stream).await.unwrap().unwrap();
            assert_eq!(item, Ok(Some(at(10))), "both are, and only the one that goes further is not");
            assert!(given(&mut stream).await.is_none());
            succeed(more);
            assert_eq!(given(&mut stream).await.unwrap().unwrap(), Ok(Some(at(12))));
        });
    }

    #[test]
    fn an_answer_that_is_here_is_told_before_the_next_request_is_sent() {
        let commit = AppendEntriesRequest {
            vote: crate::raft::types::RaftVote::new_committed(3, LEADER),
            prev_log_id: Some(at(10)),
            entries: Vec::new(),
            leader_commit: Some(at(10)),
        };
        with_stream(vec![commit], async |mut stream| {
            let entries = under_way(&mut stream, 5, 10);
            succeed(entries);
            assert_eq!(given(&mut stream).await.unwrap().unwrap(), Ok(Some(at(10))));
            assert_eq!(stream.client.stats.appends_sent.get(), 0, "nothing was sent before");
            let unsent = given(&mut stream).await.unwrap();
            assert!(matches!(unsent, Err(RPCError::Unreachable(_))), "the next one is sent now: {unsent:?}");
        });
    }
}
