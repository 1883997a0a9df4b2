//! Clients: what they ask, how they insist, and what they note.
//!
//! ```text
//!   draw a request ─► send ─┬─ answered ─────────────────────────────► note it
//!                           ├─ refused, lost ─► another node, a pause ─► the same again: same session, same sequence
//!                           └─ out of patience ──────────────────────► not applied, or unknown
//! ```
//!
//! A client is one process of the history: it has one request at a time. Its writes are numbered in one session, so that a write that
//! is sent five times applies once; that is what the checkers then look for.

use super::client::{Link, Missed};
use super::history::{
    Change, Expect, GrainChange, GrainKey, GrainRead, History, KeyId, Moment, ReadRecord, Record, Seen, ValueId,
    WriteEnd, WriteRecord,
};
use super::values::{
    EXPIRING_SPACE, GRAIN_SPACE, grain, grain_id, grain_value, key_bytes, key_of, space_name, value_bytes, value_of,
    word,
};
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::frame::MessageType;
use gristmill_rpc::ids::{SessionId, ShardId, Version};
use gristmill_rpc::message::{Message, read};
use gristmill_rpc::protocol::{Call, ServerError};
use gristmill_rpc::ring::Ring;
use gristmill_rpc::schema::{
    Command, Expected, GetGrainReply, GetGrainRequest, GetReply, GetRequest, Operation, RecallReply, RecallRequest,
    RelationPattern, ScanReply, ScanRequest, WriteReply,
};
use gristmill_shardexec::sim::Rng;
use gristmill_shardexec::time::{Instant, sleep};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

/// How long a client waits for one answer.
const PATIENCE: [Duration; 3] = [Duration::from_millis(80), Duration::from_millis(400), Duration::from_millis(2500)];
/// How long it insists on one request while things go wrong.
const INSISTS_MAX: Duration = Duration::from_secs(5);
/// Longest pause between two sendings.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Grains of each client.
const GRAINS: u16 = 3;
/// Longest value, in bytes: a few of them fill a small segment, and the largest command of them fits into an entry.
const LENGTH_MAX: u64 = 15 << 10;

/// What all clients of a run share.
pub struct Shared {
    /// Where they note.
    pub history: History,
    /// Where nodes listen.
    pub nodes: Vec<SocketAddr>,
    /// The store's ring.
    pub ring: Ring,
    /// Namespaces for plain values, and keys of each.
    pub spaces: u16,
    /// Keys of each namespace.
    pub keys: u16,
    /// Longest pause between two requests.
    pub think_max: Duration,
    /// Of so many values one is long.
    pub one_long_in: u64,
    /// So many clients only read.
    pub readers: u16,
    /// Things still go wrong: clients give up in time. Afterwards they insist.
    pub faulty: Cell<bool>,
    /// No more requests are begun.
    pub stop: Cell<bool>,
    /// Numbers of values.
    pub next_value: Cell<u64>,
    /// The words that each grain ever had, for recalls.
    pub words: RefCell<BTreeMap<GrainKey, Vec<ValueId>>>,
}

impl Shared {
    fn new_value(&self) -> ValueId {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        ValueId(value)
    }

    fn shard_of(&self, space: u16) -> ShardId {
        self.ring.shard_of(&space_name(space)).expect("a store has shards")
    }
}

/// What became of a request in the end.
enum End {
    Answered(Body),
    /// A namespace that nobody ever wrote to.
    NothingThere,
    NotApplied,
    Unknown,
}

/// One client.
pub struct Client {
    id: u16,
    shared: Rc<Shared>,
    rng: Rng,
    session: u64,
    sequence: u64,
    link: Option<Link>,
    target: usize,
    seen: BTreeMap<KeyId, (ValueId, Version)>,
    /// Bytes of the values that it has met.
    lengths: BTreeMap<ValueId, usize>,
}

impl Client {
    /// The client numbered `id`, which draws from a stream of its own.
    pub fn new(id: u16, seed: u64, shared: Rc<Shared>) -> Client {
        let mut rng = Rng::new(seed ^ 0x636c_6965_6e74_0000 ^ u64::from(id) << 48);
        let session = rng.next_u64().max(1);
        let target = rng.index(shared.nodes.len());
        Client {
            id,
            shared,
            rng,
            session,
            sequence: 0,
            link: None,
            target,
            seen: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }

    /// Asks one thing after the other until told to stop.
    pub async fn run(mut self) {
        while !self.shared.stop.get() {
            self.request().await;
            let think = self.shared.think_max;
            if self.rng.below(4) > 0 {
                sleep(self.rng.duration(Duration::ZERO..=think)).await;
            }
        }
    }

    /// Reads every key and every grain, and recalls every word: what is there in the end.
    pub async fn read_everything(mut self) {
        for space in 0..self.shared.spaces {
            for key in 0..self.shared.keys {
                self.get(KeyId { space, key }).await;
            }
            self.scan_whole(space).await;
        }
        let words = self.shared.words.borrow().clone();
        for (grain, words) in words {
            self.get_grain(grain).await;
            for word in words.iter().rev().take(3) {
                self.recall(grain, *word).await;
            }
        }
    }

    async fn request(&mut self) {
        let key = self.any_key();
        let only_reads = self.id < self.shared.readers;
        let kind = self.rng.below(100);
        match if only_reads { 36 + kind * 40 / 100 } else { kind } {
            0..28 => self.write_keys(1).await,
            28..36 => self.write_keys(4).await,
            36..66 => self.get(key).await,
            66..71 => self.scan_whole(key.space).await,
            71..76 => self.scan_part(key.space).await,
            76..84 => self.write_grain().await,
            84..88 => self.get_any_grain().await,
            88..95 => self.recall_any().await,
            95..98 => self.put_expiring().await,
            _ => self.link = None,
        }
    }

    fn any_key(&mut self) -> KeyId {
        let space = self.rng.below(u64::from(self.shared.spaces)) as u16;
        KeyId { space, key: self.rng.below(u64::from(self.shared.keys)) as u16 }
    }

    fn length(&mut self) -> usize {
        let max = if self.rng.below(self.shared.one_long_in) == 0 { LENGTH_MAX } else { 200 };
        self.rng.below(max) as usize
    }

    // Writes.

    /// Changes up to `keys_max` keys of one shard by one command.
    async fn write_keys(&mut self, keys_max: u64) {
        let first = self.any_key();
        let shard = self.shared.shard_of(first.space);
        let mut keys = vec![first];
        for _ in 1..=self.rng.below(keys_max) {
            let key = self.any_key();
            if self.shared.shard_of(key.space) == shard && !keys.contains(&key) {
                keys.push(key);
            }
        }
        let mut changes = Vec::new();
        let mut operations = Vec::new();
        for key in keys {
            let (change, operation) = self.change(key);
            changes.push((key, change));
            operations.push(operation);
        }
        self.write(shard, operations, changes, Vec::new()).await;
    }

    fn change(&mut self, key: KeyId) -> (Change, Operation) {
        let (space, bytes) = (space_name(key.space), key_bytes(key));
        match self.rng.below(10) {
            0..5 => {
                let (value, length) = (self.shared.new_value(), self.length());
                (Change::Put(value), Operation::put(&space, &bytes, &self.make(value, length)))
            }
            5 => (Change::Delete, Operation::delete(&space, &bytes)),
            _ => {
                let new = (self.rng.below(5) > 0).then(|| self.shared.new_value());
                let new_bytes = new.map(|value| self.make(value, 40));
                let known = self.seen.get(&key).copied();
                let (expected, on_wire) = match known.filter(|_| self.rng.below(4) > 0) {
                    None => (Expect::Absent, Expected::Absent),
                    Some((value, version)) if self.rng.coin() => (Expect::Value(value), Expected::Version(version)),
                    Some((value, _)) => {
                        (Expect::Value(value), Expected::Value(value_bytes(value, self.lengths[&value])))
                    }
                };
                let operation = Operation::compare_and_set(&space, &bytes, on_wire, new_bytes.as_deref());
                (Change::Swap { expected, new }, operation)
            }
        }
    }

    fn make(&mut self, value: ValueId, length: usize) -> Vec<u8> {
        let bytes = value_bytes(value, length);
        self.lengths.insert(value, bytes.len());
        bytes
    }

    async fn write_grain(&mut self) {
        let key = KeyId { space: GRAIN_SPACE, key: self.id * GRAINS + self.rng.below(u64::from(GRAINS)) as u16 };
        let (change, operation) = if self.rng.below(5) == 0 {
            let operation = Operation::DeleteGrain { namespace: space_name(key.space), id: grain_id(key) };
            (GrainChange::Delete, operation)
        } else {
            let value = self.shared.new_value();
            self.shared.words.borrow_mut().entry(key).or_default().push(value);
            (GrainChange::Put(value), Operation::PutGrain { grain: grain(key, value) })
        };
        self.write(self.shared.shard_of(key.space), vec![operation], Vec::new(), vec![(key, change)]).await;
    }

    /// A value that expires soon: work for the sweeper. Nobody reads it.
    async fn put_expiring(&mut self) {
        let key = KeyId { space: EXPIRING_SPACE, key: self.rng.below(20) as u16 };
        let operation = Operation::Put {
            namespace: space_name(key.space),
            key: key_bytes(key),
            value: value_bytes(self.shared.new_value(), 20),
            ttl_ms: 1 + self.rng.below(2000),
        };
        self.write(self.shared.shard_of(key.space), vec![operation], Vec::new(), Vec::new()).await;
    }

    async fn write(
        &mut self,
        shard: ShardId,
        operations: Vec<Operation>,
        changes: Vec<(KeyId, Change)>,
        grains: Vec<(GrainKey, GrainChange)>,
    ) {
        self.sequence += 1;
        let (session, sequence) = (self.session, self.sequence);
        let call = Call {
            message: MessageType::Write,
            body: archive(&Command { operations }),
            shard: if self.rng.coin() { shard } else { ShardId::ANY },
            session: SessionId(session),
            sequence,
        };
        let invoked = self.shared.history.moment();
        let end = match self.ask(&call).await {
            End::Answered(body) => self.write_end(&body),
            End::NotApplied => WriteEnd::NotApplied,
            End::Unknown | End::NothingThere => WriteEnd::Unknown,
        };
        if let WriteEnd::Applied { version, .. } = end {
            for (key, change) in &changes {
                match change {
                    Change::Put(value) | Change::Swap { new: Some(value), .. } => {
                        self.seen.insert(*key, (*value, version));
                    }
                    Change::Delete | Change::Swap { new: None, .. } => {
                        self.seen.remove(key);
                    }
                }
            }
        }
        let (client, returned) = (self.id, self.shared.history.moment());
        let record = WriteRecord { client, session, sequence, shard, invoked, returned, changes, grains, end };
        self.shared.history.add(Record::Write(record));
    }

    fn write_end(&self, body: &Body) -> WriteEnd {
        let Some(reply) = self.decode::<WriteReply>(body) else { return WriteEnd::Unknown };
        let (version, duplicate) = (reply.version, reply.duplicate);
        match reply.failed {
            None if reply.applied => WriteEnd::Applied { version, duplicate },
            Some(failed) if !reply.applied => {
                WriteEnd::Failed { version, operation: failed.operation as usize, found: failed.found }
            }
            _ => {
                self.absurd(format!("a write was answered with {reply:?}"));
                WriteEnd::Unknown
            }
        }
    }

    // Reads.

    async fn get(&mut self, key: KeyId) {
        let request = GetRequest { namespace: space_name(key.space), key: key_bytes(key) };
        let invoked = self.shared.history.moment();
        let seen = match self.read(key.space, &request).await {
            ControlFlow::Break(()) => return,
            ControlFlow::Continue(None) => None,
            ControlFlow::Continue(Some(body)) => {
                let Some(reply) = self.decode::<GetReply>(&body) else { return };
                match reply.value {
                    None => None,
                    Some(found) => match self.whole(key, &found.value, found.version) {
                        None => return,
                        seen => seen,
                    },
                }
            }
        };
        self.note_read(invoked, vec![(key, seen)]);
    }

    async fn scan_whole(&mut self, space: u16) {
        self.scan(space, 0..self.shared.keys, 0, false).await;
    }

    async fn scan_part(&mut self, space: u16) {
        let keys = u64::from(self.shared.keys);
        let start = self.rng.below(keys);
        let end = self.rng.within(start + 1..=keys);
        let (limit, reverse) = (1 + self.rng.below(4) as u32, self.rng.coin());
        self.scan(space, start as u16..end as u16, limit, reverse).await;
    }

    /// One page. It says something about every key of the range, or where there is more, about those up to its last.
    async fn scan(&mut self, space: u16, keys: std::ops::Range<u16>, limit: u32, reverse: bool) {
        let bytes = |key: u16| key_bytes(KeyId { space, key });
        let (start, end) = (bytes(keys.start), bytes(keys.end));
        let request = ScanRequest { namespace: space_name(space), start, end, prefix: Vec::new(), limit, reverse };
        let invoked = self.shared.history.moment();
        let mut found: BTreeMap<u16, Seen> = keys.clone().map(|key| (key, None)).collect();
        match self.read(space, &request).await {
            ControlFlow::Break(()) => return,
            ControlFlow::Continue(None) => {}
            ControlFlow::Continue(Some(body)) => {
                let Some(reply) = self.decode::<ScanReply>(&body) else { return };
                let ControlFlow::Continue(last) = self.take_page(&reply, space, &keys, reverse, &mut found) else {
                    return;
                };
                if limit > 0 && reply.items.len() > limit as usize {
                    return self.absurd(format!("{} items of {limit}", reply.items.len()));
                }
                if reply.more {
                    // Beyond the last key it says nothing.
                    found.retain(|&key, _| last.is_some_and(|last| if reverse { key >= last } else { key <= last }));
                }
            }
        }
        self.note_read(invoked, found.into_iter().map(|(key, seen)| (KeyId { space, key }, seen)).collect());
    }

    /// Puts a page's items where they belong; the last key. `Break`: the page cannot be, and that was noted.
    fn take_page(
        &mut self,
        reply: &ScanReply,
        space: u16,
        keys: &std::ops::Range<u16>,
        reverse: bool,
        found: &mut BTreeMap<u16, Seen>,
    ) -> ControlFlow<(), Option<u16>> {
        let mut last = None;
        for item in &reply.items {
            let key = key_of(space, &item.key).filter(|key| keys.contains(&key.key));
            let in_order = |key: KeyId| last.is_none_or(|last| if reverse { key.key < last } else { key.key > last });
            let Some(key) = key.filter(|key| in_order(*key)) else {
                self.absurd(format!("a page of {keys:?} has key {:?} after {last:?}", item.key));
                return ControlFlow::Break(());
            };
            let Some(whole) = self.whole(key, &item.value, item.version) else { return ControlFlow::Break(()) };
            found.insert(key.key, Some(whole));
            last = Some(key.key);
        }
        ControlFlow::Continue(last)
    }

    fn note_read(&mut self, invoked: Moment, seen: Vec<(KeyId, Seen)>) {
        for (key, found) in &seen {
            match found {
                Some(found) => self.seen.insert(*key, *found),
                None => self.seen.remove(key),
            };
        }
        let returned = self.shared.history.moment();
        self.shared.history.add(Record::Read(ReadRecord { client: self.id, invoked, returned, seen }));
    }

    /// The number in a value; `None` where it is no value of ours, and that was noted.
    fn whole(&mut self, key: KeyId, bytes: &[u8], version: Version) -> Option<(ValueId, Version)> {
        let value = value_of(bytes);
        if value.is_none() {
            self.absurd(format!("{key:?} holds {} bytes that nobody wrote, version {}", bytes.len(), version.0));
        }
        self.lengths.insert(value?, bytes.len());
        Some((value?, version))
    }

    async fn get_any_grain(&mut self) {
        if let Some((grain, _)) = self.any_word() {
            self.get_grain(grain).await;
        }
    }

    async fn recall_any(&mut self) {
        if let Some((grain, word)) = self.any_word() {
            self.recall(grain, word).await;
        }
    }

    /// A word of any grain, mostly one of its latest.
    fn any_word(&mut self) -> Option<(GrainKey, ValueId)> {
        let words = self.shared.words.borrow();
        let (grain, words) = words.iter().nth(self.rng.below(words.len().max(1) as u64) as usize)?;
        let back = self.rng.below(words.len().min(2) as u64) as usize;
        Some((*grain, words[words.len() - 1 - back]))
    }

    async fn get_grain(&mut self, key: GrainKey) {
        let request = GetGrainRequest { namespace: space_name(key.space), id: grain_id(key) };
        let invoked = self.shared.history.moment();
        let found = match self.read(key.space, &request).await {
            ControlFlow::Break(()) => return,
            ControlFlow::Continue(None) => None,
            ControlFlow::Continue(Some(body)) => {
                let Some(reply) = self.decode::<GetGrainReply>(&body) else { return };
                match reply.grain {
                    None => None,
                    Some(found) => match grain_value(key, &found) {
                        None => return self.absurd(format!("{key:?} is a grain that nobody wrote: {found:?}")),
                        found => found,
                    },
                }
            }
        };
        let (client, returned) = (self.id, self.shared.history.moment());
        let read = GrainRead { client, invoked, returned, grain: key, recalled: None, found };
        self.shared.history.add(Record::Grain(read));
    }

    /// Recalls a word that one grain has, had, or may get.
    async fn recall(&mut self, key: GrainKey, value: ValueId) {
        let mut request = RecallRequest::new(space_name(key.space));
        let legs = self.rng.below(3);
        request.text = (legs != 1).then(|| word(value));
        request.relation = (legs != 0).then(|| RelationPattern {
            subject: String::new(),
            predicate: String::new(),
            object: word(value),
        });
        request.with_grains = self.rng.coin();
        let invoked = self.shared.history.moment();
        let hits = match self.read(key.space, &request).await {
            ControlFlow::Break(()) => return,
            ControlFlow::Continue(None) => Vec::new(),
            ControlFlow::Continue(Some(body)) => match self.decode::<RecallReply>(&body) {
                Some(reply) => reply.hits,
                None => return,
            },
        };
        if let Some(stranger) = hits.iter().find(|hit| hit.id != grain_id(key)) {
            return self.absurd(format!("{key:?}: a recall of {:?} found {stranger:?}", word(value)));
        }
        for found in hits.iter().filter_map(|hit| hit.grain.as_ref()) {
            if grain_value(key, found).is_none() {
                return self.absurd(format!("{key:?}: a recall gave a grain that nobody wrote: {found:?}"));
            }
        }
        let (client, returned, found) = (self.id, self.shared.history.moment(), (!hits.is_empty()).then_some(value));
        let read = GrainRead { client, invoked, returned, grain: key, recalled: Some(value), found };
        self.shared.history.add(Record::Grain(read));
    }

    /// Sends a read. `Break`: it was not answered. `None`: nobody ever wrote to the namespace.
    async fn read<M: Message>(&mut self, space: u16, request: &M) -> ControlFlow<(), Option<Body>> {
        let shard = if self.rng.coin() { self.shared.shard_of(space) } else { ShardId::ANY };
        let call = Call { message: M::TYPE, body: archive(request), shard, session: SessionId::NONE, sequence: 0 };
        match self.ask(&call).await {
            End::Answered(body) => ControlFlow::Continue(Some(body)),
            End::NothingThere => ControlFlow::Continue(None),
            End::NotApplied | End::Unknown => ControlFlow::Break(()),
        }
    }

    // Insisting.

    /// Sends a request until it is answered or the client's patience ends.
    async fn ask(&mut self, call: &Call) -> End {
        let began = Instant::now();
        // Now and then a client gives up at the first trouble: its write stays unknown.
        let insists = if self.rng.below(12) == 0 { Duration::ZERO } else { INSISTS_MAX };
        let patience = PATIENCE[self.rng.index(PATIENCE.len())];
        let mut may_apply = false;
        let mut pause = Duration::from_millis(2);
        loop {
            match self.send(call, patience).await {
                Ok(body) => return End::Answered(body),
                Err(missed) => {
                    if let Some(end) = self.final_answer(call, &missed) {
                        return end;
                    }
                    may_apply |= !missed.is_without_effect();
                    self.turn_elsewhere(&missed);
                }
            }
            let spent = Instant::now() - began;
            if (self.shared.faulty.get() && spent >= insists) || self.shared.stop.get() {
                return if may_apply { End::Unknown } else { End::NotApplied };
            }
            sleep(self.rng.duration(pause / 2..=pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn send(&mut self, call: &Call, patience: Duration) -> Result<Body, Missed> {
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::open(self.shared.nodes[self.target], "simulated client", patience).await?,
        };
        let (link, result) = link.call(call, patience).await;
        self.link = link;
        result
    }

    /// An error that is an answer: of a namespace that was never written to. One that no request of ours deserves is noted.
    fn final_answer(&self, call: &Call, missed: &Missed) -> Option<End> {
        use ErrorCode as E;
        let Missed::Refused(ServerError { code, message, .. }) = missed else { return None };
        match code {
            Some(E::UnknownNamespace) if call.message != MessageType::Write => Some(End::NothingThere),
            Some(
                E::BadFrame
                | E::BadBody
                | E::UnsupportedVersion
                | E::UnsupportedSchema
                | E::TooLarge
                | E::CrossShard
                | E::InvalidArgument
                | E::WrongDimension
                | E::UnknownMessage
                | E::UnknownNamespace
                | E::SequenceTooOld,
            )
            | None => {
                self.absurd(format!("a request in order was refused: {message}"));
                Some(End::Unknown)
            }
            Some(_) => None,
        }
    }

    /// Where to try next: the leader where it is named, else another node, unless this one only asks for time.
    fn turn_elsewhere(&mut self, missed: &Missed) {
        let stays = matches!(missed, Missed::Refused(ServerError { code: Some(ErrorCode::Overloaded), .. }));
        if !stays {
            self.link = None;
            self.target = missed.leader().unwrap_or((self.target + 1) % self.shared.nodes.len());
        }
    }

    fn decode<M>(&self, body: &Body) -> Option<M>
    where
        M: Message,
    {
        match read::<M>(body) {
            Ok(message) => Some(message),
            Err(error) => {
                self.absurd(format!("an answer cannot be read: {error}"));
                None
            }
        }
    }

    fn absurd(&self, text: impl std::fmt::Display) {
        self.shared.history.add(Record::Absurd(format!("client {}: {text}", self.id)));
    }
}
