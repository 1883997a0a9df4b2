//! Tickets, links and retries of the blocking client: what happens between `submit` and `wait`.
//!
//! ```text
//!   submit ─▶ queue (due at once) ─▶ link ─▶ in flight ─▶ the ticket's slot ─▶ wait
//!                  ▲                                │ retriable, time left
//!                  └──────── after a pause ─────────┘
//! ```
//!
//! Invariants: a pending ticket is in exactly one of queue and a link; the engine holds pending calls only, an answer
//! belongs to its ticket and goes with it; a call is sent with the same session and sequence each time; nothing waits
//! beyond its deadline. Time is milliseconds since the client was made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::link::{Link, open, poll_fd, wait};
use crate::body::Body;
use crate::client::{
    Addresses, Answer, ClientError, ClientOptions, DIRECT_CONNECT_TIMEOUT, DIRECT_RETRY_AFTER, Jitter, MapDoubt,
    RouteMap, Session, Target, direct_address, random_u64,
};
use crate::error::ErrorCode;
use crate::ids::{SessionId, ShardId};
use crate::protocol::{Call, SubmitError};
use crate::schema::HelloReply;

/// Output that waits for the next `wait` or `flush` before `submit` sends it by itself, in bytes.
const FLUSH_BYTES: usize = 32 << 10;

/// Where a ticket finds its answer: `None` before it is there and after it was taken.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Result<Body, ClientError>>>);

impl Slot {
    fn put(&self, answer: Result<Body, ClientError>) {
        let before = self.0.lock().expect("nothing panics while holding it").replace(answer);
        assert!(before.is_none(), "a ticket is answered once");
    }

    fn take(&self) -> Option<Result<Body, ClientError>> {
        self.0.lock().expect("nothing panics while holding it").take()
    }
}

/// A call that is not answered yet.
#[derive(Debug)]
struct Entry {
    call: Call,
    deadline: u64,
    attempts: u32,
    last: Option<ClientError>,
    /// Dies with the caller's ticket; an answer that nobody can fetch is dropped.
    slot: Weak<Slot>,
}

#[derive(Debug)]
pub(super) struct Engine {
    options: ClientOptions,
    addresses: Addresses,
    map: RouteMap,
    doubt: MapDoubt,
    links: BTreeMap<Target, Link>,
    /// Until when a core's own port is not tried again.
    down: BTreeMap<Target, u64>,
    entries: BTreeMap<u64, Entry>,
    queue: BTreeSet<(u64, u64)>,
    next_ticket: u64,
    session: Session,
    jitter: Jitter,
    epoch: Instant,
}

impl Engine {
    pub(super) fn connect(address: &str, options: ClientOptions) -> Result<Engine, ClientError> {
        let mut addresses = Addresses::new(address, address.to_socket_addrs())?;
        let options = options.clamped();
        let link = open_any(&mut addresses, options.connect_timeout, &options)?;
        let random = random_u64();
        Ok(Engine {
            map: RouteMap::new(hello_of(&link)),
            doubt: MapDoubt::default(),
            links: BTreeMap::from([(Target::Given, link)]),
            options,
            addresses,
            down: BTreeMap::new(),
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            next_ticket: 1,
            session: Session::new(random),
            jitter: Jitter::new(random.rotate_left(32)),
            epoch: Instant::now(),
        })
    }

    pub(super) fn map(&self) -> &RouteMap {
        &self.map
    }

    pub(super) fn session(&self) -> SessionId {
        self.session.id()
    }

    /// Takes a sequence for a new write; waits while the session's window is full.
    pub(super) fn begin_write(&mut self) -> u64 {
        loop {
            if let Some(sequence) = self.session.begin() {
                return sequence;
            }
            self.turn(None);
        }
    }

    /// Notes that a write of before is sent once more.
    pub(super) fn reopen_write(&mut self, sequence: u64) {
        self.session.reopen(sequence);
    }

    /// Takes on a call; waits while as many are pending as may be in flight.
    pub(super) fn submit(&mut self, call: Call) -> (u64, Arc<Slot>) {
        while self.entries.len() >= self.options.in_flight_max.max(1) as usize {
            self.turn(None);
        }
        let (ticket, slot, now) = (self.next_ticket, Arc::new(Slot::default()), self.now());
        self.next_ticket += 1;
        let deadline = now.saturating_add(millis(self.options.request_timeout));
        let entry = Entry { call, deadline, attempts: 0, last: None, slot: Arc::downgrade(&slot) };
        self.entries.insert(ticket, entry);
        self.queue.insert((now, ticket));
        self.send_due();
        if self.links.values().map(Link::output_bytes).sum::<usize>() >= FLUSH_BYTES {
            self.pump();
        }
        (ticket, slot)
    }

    /// Waits for a ticket's answer.
    pub(super) fn wait(&mut self, ticket: u64, slot: &Arc<Slot>) -> Result<Body, ClientError> {
        loop {
            if let Some(answer) = slot.take() {
                return answer;
            }
            // Another client's ticket may bear the same number.
            if self.entries.get(&ticket).is_none_or(|entry| entry.slot.as_ptr() != Arc::as_ptr(slot)) {
                return Err(ClientError::UnknownTicket);
            }
            self.turn(Some(ticket));
        }
    }

    /// Sends and receives what goes without waiting for the network; a link that must be opened first is waited for.
    pub(super) fn flush(&mut self) {
        self.send_due();
        self.pump();
    }

    /// One round: send what is due, move bytes, settle what came in, and wait if nothing moved.
    fn turn(&mut self, ticket: Option<u64>) {
        let sent_at = self.send_due();
        let moved = self.pump();
        self.expire();
        let answered = ticket.is_some_and(|ticket| !self.entries.contains_key(&ticket));
        if moved || answered {
            return;
        }
        let timeout = self.patience(sent_at, self.now());
        let mut sockets: Vec<_> = self.links.values().map(poll_fd).collect();
        wait(&mut sockets, timeout);
    }

    /// How long nothing happens unless the network wakes us. `sent_at` is when the queue was last gone through: what
    /// was due then and is still queued waits for a reply to make room; what became due since must be sent at once.
    fn patience(&self, sent_at: u64, now: u64) -> Duration {
        let due = self.queue.range((sent_at + 1, 0)..).next().map(|(due, _)| *due);
        let queued = self.queue.iter().map(|(_, ticket)| self.entries[ticket].deadline).min();
        let in_flight = self.links.values().filter_map(Link::next_deadline).min();
        let wake = [due, queued, in_flight].into_iter().flatten().min();
        let timeout = wake.map_or(Duration::from_secs(1), |wake| Duration::from_millis(wake.saturating_sub(now)));
        let given_up = self.links.values().filter_map(Link::gives_up_at).min();
        given_up.map_or(timeout, |at| timeout.min(at.saturating_duration_since(Instant::now())))
    }

    /// Moves bytes on all links; gives up those that broke. `true` if anything moved.
    fn pump(&mut self) -> bool {
        let (mut answers, mut moved, mut broken) = (Vec::new(), false, Vec::new());
        for (target, link) in &mut self.links {
            match link.pump(&mut answers) {
                Ok(progress) => moved |= progress,
                Err(error) => broken.push((*target, error)),
            }
        }
        moved |= !broken.is_empty();
        self.settle(answers);
        for (target, error) in broken {
            self.drop_link(target, &error);
        }
        moved
    }

    fn settle(&mut self, answers: Vec<Answer<u64>>) {
        for (ticket, result) in answers {
            match result {
                Ok(body) => self.finish(ticket, Ok(body)),
                Err(error) => self.fail(ticket, ClientError::Server(error)),
            }
        }
    }

    fn drop_link(&mut self, target: Target, error: &ClientError) {
        let link = self.links.remove(&target).expect("it has just failed");
        for ticket in link.into_waiting() {
            self.fail(ticket, error.clone());
        }
    }

    fn expire(&mut self) {
        let now = self.now();
        for target in self.links.keys().copied().collect::<Vec<_>>() {
            while let Some(ticket) = self.links.get_mut(&target).and_then(|link| link.expire(now)) {
                self.time_out(ticket);
            }
        }
        let late = |(_, ticket): &&(u64, u64)| self.entries[ticket].deadline <= now;
        for (due, ticket) in self.queue.iter().filter(late).copied().collect::<Vec<_>>() {
            self.queue.remove(&(due, ticket));
            self.time_out(ticket);
        }
    }

    /// Sends what is due and says when that was. A call that finds its link full stays due; replies will make room.
    fn send_due(&mut self) -> u64 {
        let now = self.now();
        let due: Vec<_> = self.queue.range(..=(now, u64::MAX)).copied().collect();
        let mut unreachable = None;
        for key in due {
            let entry = &self.entries[&key.1];
            let (call, deadline) = (entry.call.clone(), entry.deadline);
            if deadline <= now {
                continue; // `expire` words it
            }
            match self.link_for(&call, deadline, &mut unreachable) {
                Ok(target) => self.send(key, &call, deadline - now, target),
                Err(error) => {
                    self.queue.remove(&key);
                    self.fail(key.1, error);
                }
            }
        }
        now
    }

    fn send(&mut self, key: (u64, u64), call: &Call, left_ms: u64, target: Target) {
        let link = self.links.get_mut(&target).expect("just found or opened");
        let deadline = self.entries[&key.1].deadline;
        match link.submit(key.1, call, Some(deadline), u32::try_from(left_ms).unwrap_or(u32::MAX)) {
            Ok(()) => {
                self.queue.remove(&key);
            }
            Err((SubmitError::Full { .. }, _)) => {}
            Err((error, _)) => {
                self.queue.remove(&key);
                self.finish(key.1, Err(error.into()));
            }
        }
    }

    /// An open link for a call: to the core that owns its shard where that can be reached, else to the given address.
    /// `unreachable` holds why the given address failed in this round, so that one round waits for it once.
    fn link_for(
        &mut self,
        call: &Call,
        deadline: u64,
        unreachable: &mut Option<ClientError>,
    ) -> Result<Target, ClientError> {
        let left = Duration::from_millis(deadline.saturating_sub(self.now()));
        if self.doubt.ask(Instant::now()) {
            self.refresh_map(left);
        }
        if let Some(target) = self.direct_link(call.shard, left) {
            return Ok(target);
        }
        if self.links.contains_key(&Target::Given) {
            return Ok(Target::Given);
        }
        if let Some(error) = unreachable {
            return Err(error.clone());
        }
        self.open_given(left).inspect_err(|error| *unreachable = Some(error.clone()))
    }

    fn direct_link(&mut self, shard: ShardId, left: Duration) -> Option<Target> {
        let (core, port) = self.map.core_of(shard).filter(|_| self.options.direct)?;
        let target = Target::Core(core);
        if self.links.contains_key(&target) {
            return Some(target);
        }
        if self.down.get(&target).is_some_and(|until| *until > self.now()) {
            return None;
        }
        let given = self.links.get(&Target::Given).map_or(self.addresses.first(), Link::address);
        let address = direct_address(given, port)?;
        match open(address, DIRECT_CONNECT_TIMEOUT.min(left), &self.options) {
            Ok(link) if hello_of(&link).store == self.map.store => {
                self.links.insert(target, link);
                Some(target)
            }
            Ok(_) | Err(_) => {
                self.down.insert(target, self.now() + millis(DIRECT_RETRY_AFTER));
                None
            }
        }
    }

    fn open_given(&mut self, left: Duration) -> Result<Target, ClientError> {
        let link = open_any(&mut self.addresses, self.options.connect_timeout.min(left), &self.options)?;
        if hello_of(&link).store != self.map.store {
            return Err(ClientError::StoreChanged { address: link.address() });
        }
        self.adopt(RouteMap::new(hello_of(&link)));
        self.links.insert(Target::Given, link);
        Ok(Target::Given)
    }

    /// Asks for the map again, over a connection of its own: what is under way on the others goes on. Where that
    /// fails, the old map stays; the server passes on what arrives at the wrong core.
    fn refresh_map(&mut self, left: Duration) {
        let opened = open_any(&mut self.addresses, self.options.connect_timeout.min(left), &self.options);
        if let Some(link) = opened.ok().filter(|link| hello_of(link).store == self.map.store) {
            self.adopt(RouteMap::new(hello_of(&link)));
            self.links.entry(Target::Given).or_insert(link);
        }
    }

    fn adopt(&mut self, map: RouteMap) {
        if map == self.map {
            return;
        }
        self.map = map;
        self.down.clear();
        let links = self.links.iter().map(|(target, link)| (*target, link.address()));
        let to_cores: Vec<_> = links.filter(|(target, _)| *target != Target::Given).collect();
        for (target, address) in to_cores {
            self.drop_link(target, &ClientError::disconnected(address, &"the server's cores are laid out anew"));
        }
    }

    /// Tries a failed call again, if that makes sense and there is time.
    fn fail(&mut self, ticket: u64, error: ClientError) {
        let now = self.now();
        let entry = self.entries.get_mut(&ticket).expect("pending tickets have entries");
        entry.attempts += 1;
        let pause = if error.retriable() {
            self.options.retry.pause(entry.attempts, error.retry_after_ms(), &mut self.jitter)
        } else {
            None
        };
        let Some(pause) = pause else { return self.finish(ticket, Err(error)) };
        if error.code() == Some(ErrorCode::WrongShard) {
            entry.call.shard = ShardId::ANY; // our map is wrong; the server's is not
            self.doubt.note();
        }
        entry.last = Some(error);
        // Not in this millisecond, even without a pause: what is due in it and still queued waits for room.
        let due = now.saturating_add(millis(pause).max(1));
        if due >= entry.deadline {
            return self.time_out(ticket);
        }
        self.queue.insert((due, ticket));
    }

    fn time_out(&mut self, ticket: u64) {
        let after = self.options.request_timeout;
        let entry = self.entries.get_mut(&ticket).expect("pending tickets have entries");
        let last = entry.last.take().map(Box::new);
        let attempts = entry.attempts + u32::from(last.is_none());
        self.finish(ticket, Err(ClientError::Timeout { after, attempts, last }));
    }

    fn finish(&mut self, ticket: u64, answer: Result<Body, ClientError>) {
        let entry = self.entries.remove(&ticket).expect("pending tickets have entries");
        // Another client's ticket that was resubmitted here is numbered in that client's session.
        if entry.call.session == self.session.id() {
            self.session.resolve(entry.call.sequence);
        }
        if let Some(slot) = entry.slot.upgrade() {
            slot.put(answer);
        }
    }

    /// Writes of this client's session that may still be sent.
    #[cfg(test)]
    pub(super) fn unresolved_writes(&self) -> usize {
        self.session.unresolved()
    }

    /// As if the given name had led elsewhere when it was looked up.
    #[cfg(test)]
    pub(super) fn mislead(&mut self, address: std::net::SocketAddr) {
        self.addresses.mislead(address);
    }

    /// Calls that the engine holds.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.entries.len()
    }

    /// Milliseconds since the client was made.
    fn now(&self) -> u64 {
        millis(self.epoch.elapsed())
    }
}

fn hello_of(link: &Link) -> &HelloReply {
    link.hello().expect("a link is opened with its hello")
}

/// Tries all addresses of a name; the last failure stands for all.
fn open_any(addresses: &mut Addresses, timeout: Duration, options: &ClientOptions) -> Result<Link, ClientError> {
    if let Some(name) = addresses.to_look_up() {
        let found = name.to_socket_addrs();
        addresses.renew(found);
    }
    let mut result = None;
    for address in addresses.attempt() {
        match open(address, timeout, options) {
            Ok(link) => {
                addresses.note_reached();
                return Ok(link);
            }
            Err(error) => result = Some(error),
        }
    }
    Err(result.expect("resolving gave at least one address"))
}

/// Whole milliseconds, rounded up, so that no pause becomes a spin.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeServer;

    /// A retry became due between sending what was due and computing how long to wait. It counted as sent already, so
    /// the client slept until the call's deadline.
    #[test]
    fn what_became_due_since_the_last_sending_is_not_slept_through() {
        let server = FakeServer::start(1, 1);
        let mut engine = Engine::connect(&server.address(), ClientOptions::default()).expect("it listens");
        let call = Call {
            message: crate::frame::MessageType::Status,
            body: crate::body::archive(&crate::schema::StatusRequest { verbose: false }),
            shard: ShardId::ANY,
            session: SessionId::NONE,
            sequence: 0,
        };
        let (deadline, slot) = (1_000_000, Weak::new());
        engine.entries.insert(1, Entry { call, deadline, attempts: 1, last: None, slot });
        engine.queue.insert((5, 1));
        assert_eq!(engine.patience(3, 3), Duration::from_millis(2));
        assert_eq!(engine.patience(4, 6), Duration::ZERO);
        assert_eq!(engine.patience(5, 6), Duration::from_millis(deadline - 6), "it was due and found no room");
    }
}
