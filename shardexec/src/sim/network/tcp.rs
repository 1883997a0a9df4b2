//! Bytes on connections.

use rustix::io::Errno;

use super::{Blow, Half, NetEvent, Owner, RETRY_MAX_NS, RETRY_MIN_NS, Segment, Stall};
use crate::buf::IoBuf;
use crate::driver::{Op, OpKey, OpOutput, ShutdownHow};
use crate::sim::events::Event;
use crate::sim::faults::FaultKind;
use crate::sim::state::{Opened, State};
use crate::sim::trace::{NOWHERE, What};

/// One transfer in so many is cut somewhere, as segments and full buffers cut it.
const CUT_ONE_IN: u64 = 8;

/// A delayed segment is late by at most this much.
const DELAY_MAX_NS: u64 = 200_000_000;

impl Half {
    /// Moves unread bytes to the end of `buf`; how many.
    fn take(&mut self, buf: &mut IoBuf, mut count: usize) {
        self.held -= count;
        self.unread -= count;
        while count > 0 {
            let piece = self.inbox.front().expect("unread bytes are in the inbox");
            let part = count.min(piece.len() - self.read);
            let bytes = &piece[self.read..self.read + part];
            match buf {
                IoBuf::Vec(buf) => buf.extend_from_slice(bytes),
                IoBuf::Aligned(buf) => buf.extend_from_slice(bytes),
                IoBuf::Shared(_) => unreachable!("only a buffer of one's own can be filled"),
            }
            (self.read, count) = (self.read + part, count - part);
            if self.read == piece.len() {
                self.inbox.pop_front();
                self.read = 0;
            }
        }
    }

    fn drop_inbox(&mut self) {
        self.inbox.clear();
        self.held -= self.unread;
        (self.read, self.unread) = (0, 0);
    }

    fn drop_wire(&mut self) {
        self.wire.clear();
        self.held = self.unread;
    }
}

impl State {
    /// Starts a socket op.
    pub fn submit_socket(&mut self, core: usize, key: OpKey, op: Op) {
        let result = match &op {
            Op::Listen { addr, options } => self.listen(core, *addr, *options),
            Op::Connect { addr } => {
                let addr = *addr;
                self.cores[core].put_flight(key, op);
                return self.start_connect(core, key, addr);
            }
            Op::Accept { .. } => return self.start_accept(core, key, op),
            Op::SetNoDelay { .. } => Ok(OpOutput::Done),
            Op::Recv { socket, .. } | Op::Send { socket, .. } | Op::Shutdown { socket, .. } => {
                let Opened::Socket { conn, side } = self.cores[core].opened(*socket) else {
                    unreachable!("a transfer on something that is no connection")
                };
                let queues =
                    &mut self.network.conns.get_mut(&conn).expect("a held end keeps its connection").ends[side];
                match &op {
                    Op::Shutdown { how, .. } => self.shutdown(conn, side, *how),
                    Op::Recv { .. } => {
                        queues.recvs.push_back(key);
                        self.cores[core].put_flight(key, op);
                        return self.serve_recvs(conn, side);
                    }
                    _ => {
                        queues.sends.push_back(key);
                        self.cores[core].put_flight(key, op);
                        return self.serve_sends(conn, side);
                    }
                }
            }
            other => unreachable!("{other:?} is not a socket operation"),
        };
        self.complete(core, key, op, result, false);
    }

    /// A network event's time has come.
    pub fn on_net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Connect { core, key, attempt, since } => self.try_connect(core, key, attempt, since),
            NetEvent::Arrive { conn, side } => self.arrive(conn, side),
            NetEvent::Reset { conn, side } => {
                let Some(found) = self.network.conns.get(&conn) else { return };
                let (from, to) = (found.ends[1 - side].node, found.ends[side].node);
                if self.reaches(from, to) {
                    self.break_end(conn, side, Errno::CONNRESET);
                }
            }
        }
    }

    fn finish_transfer(&mut self, conn: u64, side: usize, receives: bool, result: std::io::Result<OpOutput>) {
        let end = &mut self.network.conns.get_mut(&conn).expect("the caller found it").ends[side];
        let key = if receives { end.recvs.pop_front() } else { end.sends.pop_front() }.expect("the caller found it");
        let Owner::Core(core) = end.owner else { unreachable!("only a core waits at a connection") };
        let flight = self.cores[core].take_flight(key).expect("what waits at a connection is in flight");
        self.complete(core, key, flight.op, result, false);
    }

    /// Answers receives with what has arrived.
    fn serve_recvs(&mut self, id: u64, side: usize) {
        loop {
            let Some(conn) = self.network.conns.get_mut(&id) else { return };
            let (end, half) = (&mut conn.ends[side], &mut conn.halves[1 - side]);
            let (Some(&key), Owner::Core(core)) = (end.recvs.front(), end.owner) else { return };
            if let Some(broken) = end.broken {
                self.finish_transfer(id, side, true, Err(broken.into()));
            } else if half.unread > 0 {
                let flight = self.cores[core].flight(key).expect("what waits at a connection is in flight");
                let Op::Recv { buf, .. } = &mut flight.op else { unreachable!("queued as a receive") };
                let mut count = half.unread.min(buf.capacity() - buf.len());
                if self.network.rng.below(CUT_ONE_IN) == 0 {
                    count = 1 + self.network.rng.index(count);
                }
                half.take(buf, count);
                self.finish_transfer(id, side, true, Ok(OpOutput::Count(count)));
                self.serve_sends(id, 1 - side);
            } else if half.fin_arrived || end.recv_shut {
                self.finish_transfer(id, side, true, Ok(OpOutput::Count(0)));
            } else {
                return;
            }
        }
    }

    /// Takes bytes of sends while there is room.
    fn serve_sends(&mut self, id: u64, side: usize) {
        loop {
            let Some(conn) = self.network.conns.get_mut(&id) else { return };
            let (end, half) = (&mut conn.ends[side], &mut conn.halves[side]);
            let (Some(&key), Owner::Core(core)) = (end.sends.front(), end.owner) else { return };
            if let Some(broken) = end.broken {
                self.finish_transfer(id, side, false, Err(broken.into()));
                continue;
            }
            if half.fin_sent {
                self.finish_transfer(id, side, false, Err(Errno::PIPE.into()));
                continue;
            }
            let room = self.config.socket_buffer.saturating_sub(half.held);
            if room == 0 {
                return;
            }
            let flight = self.cores[core].flight(key).expect("what waits at a connection is in flight");
            let Op::Send { buf, start, .. } = &flight.op else { unreachable!("queued as a send") };
            let rest = &buf.as_slice()[*start..];
            let mut count = room.min(rest.len());
            if count > 1 && self.network.rng.below(CUT_ONE_IN) == 0 {
                count = 1 + self.network.rng.index(count);
            }
            let bytes = rest[..count].to_vec();
            half.held += count;
            self.transmit(id, side, bytes, false);
            self.finish_transfer(id, side, false, Ok(OpOutput::Count(count)));
        }
    }

    /// Puts a segment on the wire.
    fn transmit(&mut self, id: u64, side: usize, bytes: Vec<u8>, last: bool) {
        let conn = &self.network.conns[&id];
        let (from, to) = (conn.ends[side].node, conn.ends[1 - side].node);
        let mut arrives = self.now + self.network_latency(from, to);
        let mut blow = None;
        if from != to {
            for kind in [
                FaultKind::NetDelay,
                FaultKind::NetDrop,
                FaultKind::NetReorder,
                FaultKind::NetDuplicate,
                FaultKind::NetReset,
            ] {
                if !self.network.rng.chance(self.config.faults.ppm(kind)) {
                    continue;
                }
                self.struck(kind, NOWHERE);
                match kind {
                    FaultKind::NetDelay => arrives += self.network.rng.below(DELAY_MAX_NS),
                    FaultKind::NetDrop => arrives += RETRY_MIN_NS << self.network.rng.below(3),
                    FaultKind::NetReorder => {
                        // Overtaken by the next two or so.
                        arrives += self.network_latency(from, to) + self.network_latency(from, to);
                    }
                    FaultKind::NetDuplicate => blow = Some(Blow::SentTwice),
                    _ => blow = Some(Blow::Cut),
                }
            }
        }
        let half = &mut self.network.conns.get_mut(&id).expect("looked up above").halves[side];
        let after = half.wire.back().map_or(0, |before| before.arrives);
        half.wire.push_back(Segment { arrives: arrives.max(after), bytes, last, blow });
        self.arm(id, side, 0);
    }

    /// Sees to it that the wire from `side` is looked at when its first segment arrives, not before `earliest`.
    fn arm(&mut self, id: u64, side: usize, earliest: u64) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let half = &mut conn.halves[side];
        if half.armed {
            return;
        }
        let first = half.wire.front().map(|segment| segment.arrives);
        let Some(at) = first.or(half.unacknowledged.then_some(earliest)) else { return };
        half.armed = true;
        self.events.push(at.max(earliest).max(self.now), Event::Net(NetEvent::Arrive { conn: id, side }));
    }

    /// Something from `side` arrives at the other side, or fails to.
    fn arrive(&mut self, id: u64, side: usize) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.halves[side].armed = false;
        if conn.ends[side].broken.is_some() || conn.ends[side].owner == Owner::Gone {
            return; // Whoever sent it no longer retransmits.
        }
        let (from, to) = (conn.ends[side].node, conn.ends[1 - side].node);
        let forth = self.reaches(from, to);
        let back = self.reaches(to, from);
        if forth {
            self.deliver(id, side);
        }
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let half = &mut conn.halves[side];
        half.unacknowledged = !back && (forth || half.unacknowledged);
        if forth && back {
            half.stalled = None;
            return self.arm(id, side, 0);
        }
        let now = self.now;
        let stall = half.stalled.unwrap_or_else(|| {
            let patience = self.network.rng.duration(self.config.retransmit_timeout.clone()).as_nanos() as u64;
            Stall { tries: 0, gives_up_at: now + patience }
        });
        if now >= stall.gives_up_at {
            return self.break_end(id, side, Errno::TIMEDOUT);
        }
        let pause = (RETRY_MIN_NS << stall.tries.min(4)).min(RETRY_MAX_NS);
        half.stalled = Some(Stall { tries: stall.tries + 1, ..stall });
        self.arm(id, side, now + pause);
    }

    /// Moves what has arrived from the wire to the inbox.
    fn deliver(&mut self, id: u64, side: usize) {
        let mut blow = None;
        loop {
            let Some(conn) = self.network.conns.get_mut(&id) else { return };
            let (end, half) = (&conn.ends[1 - side], &mut conn.halves[side]);
            if half.wire.front().is_none_or(|segment| segment.arrives > self.now) {
                break;
            }
            let mut segment = half.wire.pop_front().expect("looked at above");
            if end.broken.is_some() || !end.is_held() {
                // Nobody there: the kernel answers with a reset.
                let (from, to) = (conn.ends[1 - side].node, conn.ends[side].node);
                half.drop_wire();
                let at = self.now + self.network_latency(from, to);
                self.events.push(at, Event::Net(NetEvent::Reset { conn: id, side }));
                return;
            }
            blow = segment.blow;
            if blow == Some(Blow::Cut) {
                let kept = self.network.rng.index(segment.bytes.len() + 1);
                half.held -= segment.bytes.len() - kept;
                segment.bytes.truncate(kept);
                segment.last = false;
            }
            self.trace.event(self.now, id, What::Deliver, [side as u64, segment.bytes.len() as u64]);
            if end.recv_shut {
                half.held -= segment.bytes.len();
            } else if !segment.bytes.is_empty() {
                half.unread += segment.bytes.len();
                half.inbox.push_back(segment.bytes);
            }
            half.fin_arrived |= segment.last;
            if blow.is_some() {
                break;
            }
        }
        self.serve_recvs(id, 1 - side);
        match blow {
            None => {}
            Some(Blow::Cut) => {
                self.break_end(id, side, Errno::CONNRESET);
                self.break_end(id, 1 - side, Errno::CONNRESET);
            }
            Some(Blow::SentTwice) => {
                self.break_end(id, side, Errno::CONNRESET);
                let later = self.now + self.network.rng.below(DELAY_MAX_NS);
                self.events.push(later, Event::Net(NetEvent::Reset { conn: id, side: 1 - side }));
            }
        }
    }

    /// One side hears that the connection is over: what it has not read is gone, and every op fails.
    fn break_end(&mut self, id: u64, side: usize, error: Errno) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.ends[side].broken.is_some() {
            return;
        }
        conn.ends[side].broken = Some(error);
        conn.halves[side].drop_wire();
        conn.halves[1 - side].drop_inbox();
        self.serve_recvs(id, side);
        self.serve_sends(id, side);
        self.reap(id);
    }

    fn shutdown(&mut self, id: u64, side: usize, how: ShutdownHow) -> std::io::Result<OpOutput> {
        let conn = self.network.conns.get_mut(&id).expect("a held end keeps its connection");
        if conn.ends[side].broken.is_some() {
            return Err(Errno::NOTCONN.into());
        }
        if how != ShutdownHow::Write {
            conn.ends[side].recv_shut = true;
        }
        let ends = how != ShutdownHow::Read && !std::mem::replace(&mut conn.halves[side].fin_sent, true);
        if ends {
            self.transmit(id, side, Vec::new(), true);
            self.serve_sends(id, side);
        }
        self.serve_recvs(id, side);
        Ok(OpOutput::Done)
    }

    /// A process closes its end, or ends with it: the stream ends after what was sent, or is reset when something was left unread.
    pub fn close_socket(&mut self, id: u64, side: usize) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if conn.halves[1 - side].unread > 0 || matches!(conn.ends[side].owner, Owner::Backlog(_)) {
            return self.abandon_end(id, side);
        }
        conn.ends[side].owner = Owner::Closed;
        let ends = conn.ends[side].broken.is_none() && !std::mem::replace(&mut conn.halves[side].fin_sent, true);
        if ends && conn.ends[1 - side].is_held() {
            self.transmit(id, side, Vec::new(), true);
        }
        self.reap(id);
    }

    /// Closes an end with a reset.
    pub(super) fn abandon_end(&mut self, id: u64, side: usize) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.ends[side].owner = Owner::Closed;
        conn.halves[side].drop_wire();
        let (from, to) = (conn.ends[side].node, conn.ends[1 - side].node);
        let at = self.now + self.network_latency(from, to);
        self.events.push(at, Event::Net(NetEvent::Reset { conn: id, side: 1 - side }));
        self.reap(id);
    }

    /// Forgets a connection that nobody holds.
    fn reap(&mut self, id: u64) {
        if self.network.conns.get(&id).is_some_and(|conn| conn.ends.iter().all(|end| !end.is_held())) {
            self.network.conns.remove(&id);
        }
    }

    /// A node's process ends, or its machine loses power: its sockets go.
    pub fn drop_sockets(&mut self, node: usize, power_lost: bool) {
        self.network.listeners.retain(|_, listener| listener.node != node);
        let ids: Vec<u64> = self.network.conns.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                let Some(conn) = self.network.conns.get_mut(&id) else { break };
                let end = &mut conn.ends[side];
                if end.node != node || end.owner == Owner::Gone || end.owner == Owner::Closed && !power_lost {
                    continue;
                }
                end.recvs.clear();
                end.sends.clear();
                if power_lost {
                    end.owner = Owner::Gone;
                    conn.halves[side].drop_wire();
                    self.reap(id);
                } else {
                    self.close_socket(id, side);
                }
            }
        }
    }
}
