//! The bytes in `golden/` against the encoders, and every single flipped bit of them against the decoders.

use std::fmt::Write as _;

use super::*;
use crate::limits::{BLOCK_BYTES, RECORD_HEADER_BYTES};
use crate::token::FencingToken;
use crate::types::{GroupId, Home, LogId, LogNumber, LogPosition, Lsn, SegmentId, TruncatedAfter, Vote};
use gristmill_shardexec::time::WallClock;

const SEGMENT: SegmentId = SegmentId(0x0102_0304_0506_0708);
const LOG_ID: LogId = LogId(*b"0123456789abcdef");
const AT: LogPosition = LogPosition { term: 6, index: 41 };

/// A header of `kind` with its payload fields unset.
pub(crate) fn header(kind: RecordKind, lsn: Lsn) -> RecordHeader {
    RecordHeader {
        kind,
        entry_kind: 0,
        payload_bytes: 0,
        payload_crc: 0,
        segment: SEGMENT,
        offset: 0,
        group_back: 3,
        lsn,
        group: GroupId(17),
        index: AT.index,
        token: FencingToken::new(AT.term as u32, 0),
    }
}

/// A whole record at offset 0 of the golden segment.
fn record(mut header: RecordHeader, payload: &[u8]) -> Vec<u8> {
    let crc = SegmentCrc::new(LOG_ID, SEGMENT);
    let mut bytes = vec![0; record_bytes(payload.len())];
    bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    header.payload_bytes = payload.len() as u32;
    header.payload_crc = crc.of(&bytes[RECORD_HEADER_BYTES..]);
    header.encode(&crc, &mut bytes);
    bytes
}

fn seal_record(kind: RecordKind, seal: &Seal) -> Vec<u8> {
    let mut payload = vec![0; BLOCK_BYTES - RECORD_HEADER_BYTES];
    seal.encode(&mut payload);
    let head = RecordHeader {
        group: GroupId(0),
        index: 0,
        group_back: 0,
        token: FencingToken::default(),
        ..header(kind, Lsn(130))
    };
    record(head, &payload)
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        vote: Some(Vote { term: 7, node: 2, incarnation: 5, committed: true }),
        committed: Some(AT),
        purged: Some(LogPosition { term: 5, index: 30 }),
        truncated: Some(TruncatedAfter(Some(LogPosition { term: 5, index: 35 }))),
        last: Some(AT),
        token_highest: FencingToken::new(6, 9),
        token_last: FencingToken::new(6, 8),
        home: Some(Home { epoch: 3, retired: false }),
        membership: Some((LogPosition { term: 1, index: 0 }, b"voters 1 2 3"[..].into())),
        remaining: 4,
    }
}

fn trailer() -> Seal {
    Seal {
        first_lsn: Lsn(128),
        durable_lsn: Lsn(120),
        previous: TrailerHash(0x1122_3344_5566_7788),
        oldest_segment: SegmentId(0x0102_0304_0506_0700),
        batch_offset: 16_384,
        batch_crc: 0xa1b2_c3d4,
        records: 3,
        mark_sequence: 0,
        table_complete: true,
        table: vec![
            SealEntry { group: GroupId(17), last: Some(AT), last_lsn: Lsn(129), kinds: kinds::bit(RecordKind::Entry) },
            SealEntry { group: GroupId(4), last: None, last_lsn: Lsn(130), kinds: kinds::bit(RecordKind::Vote) },
        ],
    }
}

fn mark() -> Seal {
    let table = trailer().table.into_iter().map(|entry| SealEntry { kinds: 0, ..entry }).collect();
    Seal {
        first_lsn: Lsn(0),
        durable_lsn: Lsn(130),
        batch_offset: 0,
        batch_crc: 0,
        records: 0,
        mark_sequence: 2,
        table,
        ..trailer()
    }
}

/// Name, bytes as the encoder makes them, golden bytes in hex.
fn all() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let entry = RecordHeader {
        entry_kind: 5,
        token: FencingToken::new(AT.term as u32, 9),
        ..header(RecordKind::Entry, Lsn(129))
    };
    let small = |kind, payload: &[u8]| record(header(kind, Lsn(130)), payload);
    let mut membership = encode_membership_head(AT).to_vec();
    membership.extend_from_slice(b"voters 1 2 3");
    let segment = SegmentHeader {
        segment: SEGMENT,
        log_id: LOG_ID,
        log: LogNumber(3),
        segment_bytes: 64 << 20,
        created: WallClock(1_700_000_000_000_000_000),
        previous: SegmentId(6),
    };
    let vote = Vote { term: 7, node: 2, incarnation: 5, committed: true };
    vec![
        ("segment-header", segment.encode().to_vec(), include_str!("../../golden/segment-header.hex")),
        ("entry", record(entry, b"an entry's payload"), include_str!("../../golden/entry.hex")),
        ("vote", small(RecordKind::Vote, &encode_vote(&vote)), include_str!("../../golden/vote.hex")),
        ("membership", small(RecordKind::Membership, &membership), include_str!("../../golden/membership.hex")),
        (
            "truncate-after",
            small(RecordKind::TruncateAfter, &encode_truncate(Some(AT))),
            include_str!("../../golden/truncate-after.hex"),
        ),
        ("purge", small(RecordKind::Purge, &encode_purge(AT)), include_str!("../../golden/purge.hex")),
        (
            "committed",
            small(RecordKind::Committed, &encode_committed(Some(AT))),
            include_str!("../../golden/committed.hex"),
        ),
        (
            "shard-home",
            small(RecordKind::ShardHome, &encode_home(Home { epoch: 3, retired: true })),
            include_str!("../../golden/shard-home.hex"),
        ),
        (
            "checkpoint",
            small(RecordKind::Checkpoint, &checkpoint().encode()),
            include_str!("../../golden/checkpoint.hex"),
        ),
        ("trailer", seal_record(RecordKind::Trailer, &trailer()), include_str!("../../golden/trailer.hex")),
        ("mark", seal_record(RecordKind::Mark, &mark()), include_str!("../../golden/mark.hex")),
    ]
}

/// 32 bytes a line; trailing lines of zeros are left out and the length stands first.
fn to_hex(bytes: &[u8]) -> String {
    let used = bytes.len() - bytes.iter().rev().take_while(|&&byte| byte == 0).count();
    let mut text = format!("{} bytes, the rest zero\n", bytes.len());
    for line in bytes[..used].chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").expect("memory");
        }
        text.push('\n');
    }
    text
}

#[test]
fn encoders_make_the_golden_bytes() {
    let mut stale = Vec::new();
    for (name, bytes, golden) in all() {
        if to_hex(&bytes) != golden {
            stale.push(format!("golden/{name}.hex should hold:\n{}", to_hex(&bytes)));
        }
    }
    assert!(stale.is_empty(), "the format changed; FORMAT.md and its revision change with it\n{}", stale.join("\n"));
}

#[test]
fn decoders_read_the_golden_records() {
    for (name, bytes, _) in all().split_off(1) {
        let crc = SegmentCrc::new(LOG_ID, SEGMENT);
        let header = decode_header(&crc, &bytes, 0).expect(name);
        assert!(payload_intact(&crc, &bytes, &header), "{name}");
        assert_eq!(header.kind.name(), name);
        let payload = &bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + header.payload_bytes as usize];
        match header.kind {
            RecordKind::Checkpoint => assert_eq!(Checkpoint::decode(payload), Ok(checkpoint())),
            RecordKind::Trailer => assert_eq!(Seal::decode(&header, payload), Ok(trailer())),
            RecordKind::Mark => assert_eq!(Seal::decode(&header, payload), Ok(mark())),
            _ => {}
        }
    }
}

#[test]
fn any_flipped_bit_of_a_golden_record_is_seen() {
    let crc = SegmentCrc::new(LOG_ID, SEGMENT);
    for (name, bytes, _) in all().split_off(1) {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let intact = decode_header(&crc, &flipped, 0).is_ok_and(|header| payload_intact(&crc, &flipped, &header));
            assert!(!intact, "{name}: bit {bit}");
        }
    }
}
