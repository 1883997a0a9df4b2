//! Several appends under way to one replica.
//!
//! ```text
//!   openraft's requests ──► sent in order, up to PIPELINE_MAX unanswered ──► answers in the same order ──► openraft
//! ```
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
        AppendStream { client, input: Some(input), unanswered, bytes: 0, silence: None, silence_max }
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

    fn settle(&mut self, answer: Result<AppendReply, RPCError<TypeConfig>>) -> Item {
        let sent = self.unanswered.pop_front().expect("the oldest one was answered");
        self.bytes -= sent.bytes;
        self.silence = None;
        let response = self.client.read_append(&answer?)?;
        if matches!(response, AppendEntriesResponse::Conflict) && sent.previous.is_none() {
            return Err(self.client.bad_answer("a conflict before the beginning of the log".to_owned()));
        }
        Ok(response.into_stream_result(sent.previous, sent.last))
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
        if let Err(error) = this.fill(cx) {
            this.end();
            return Poll::Ready(Some(Err(error)));
        }
        let Some(oldest) = this.unanswered.front_mut() else {
            return if this.input.is_none() { Poll::Ready(None) } else { Poll::Pending };
        };
        let item = match Pin::new(&mut oldest.answer).poll(cx) {
            Poll::Ready(answer) => {
                let answer = this.client.receive::<AppendReply>(answer);
                this.settle(answer)
            }
            Poll::Pending if this.is_silent(cx) => {
                Err(this.client.timed_out(RPCTypes::AppendEntries, this.silence_max))
            }
            Poll::Pending => return Poll::Pending,
        };
        if !matches!(item, Ok(Ok(_))) {
            this.end();
        }
        Poll::Ready(Some(item))
    }
}
