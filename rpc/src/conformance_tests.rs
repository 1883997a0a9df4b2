//! The wire format as a whole: golden bytes, round trips, and archives that someone has tampered with.

#![allow(clippy::disallowed_methods, reason = "golden bytes are files in the repository")]

use std::fmt::Write as _;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::body::{Body, access, archive};
use crate::error::ErrorCode;
use crate::frame::{FrameHeader, MessageType};
use crate::ids::{GrainId, Version};
use crate::limits::{self, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::message::{Message, read};
use crate::peer::{
    AddLearner, AppendReply, AppendRequest, ArchivedLogEntry, ChangeMembership, MembershipReply, PeerHello,
    PeerHelloReply, PreVoteRequest, TransferLeaderReply, TransferLeaderRequest, VoteReply, VoteRequest,
};
use crate::protocol::{Decoded, Frame, FrameDecoder};
use crate::samples::{command, samples};
use crate::schema::{
    ArchivedCommand, ArchivedExpected, ArchivedOperation, Command, ErrorReply, Expected, GetGrainReply,
    GetGrainRequest, GetReply, GetRequest, Grain, Hello, HelloReply, LegHit, Operation, RecallReply, RecallRequest,
    Relation, ScanItem, ScanReply, ScanRequest, SearchHit, StatusReply, StatusRequest, WriteReply,
};
use crate::validate::{self, message_body};

/// Set to write the golden files anew, after a change of the format that PROTOCOL.md describes.
const BLESS: &str = "GRISTMILL_BLESS";

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.hex"))
}

fn to_hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for line in bytes.chunks(16) {
        let words: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "{}", words.join(" ")).expect("a String takes everything");
    }
    out
}

fn from_hex(text: &str) -> Vec<u8> {
    text.split_ascii_whitespace().map(|word| u8::from_str_radix(word, 16).expect("two hex digits")).collect()
}

/// The bytes on the wire are what they were: both directions, for every message type.
#[test]
fn golden_frames_are_unchanged() {
    for sample in samples() {
        let mut bytes = sample.header.encode().to_vec();
        bytes.extend_from_slice(&sample.body);
        let path = golden_path(sample.name);
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(&path, to_hex(&bytes)).expect("the golden folder is writable");
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(to_hex(&bytes), golden, "{} is encoded otherwise than the golden bytes", sample.name);

        let golden = from_hex(&golden);
        let decoded = FrameDecoder::new(FRAME_BODY_BYTES_MAX).decode(&mut &golden[..]).expect("valid");
        let expected = Frame { header: sample.header, body: sample.body.clone() };
        assert_eq!(decoded, Some(Decoded::Frame(expected)), "{}", sample.name);
        walk(&sample.header, &sample.body).unwrap_or_else(|()| panic!("{} is no longer readable", sample.name));
    }
    let files = std::fs::read_dir(golden_path("x").parent().expect("a folder")).expect("readable").count();
    assert_eq!(files, samples().len(), "no golden file without its message");
}

#[test]
fn every_bit_of_a_header_is_covered() {
    for sample in samples() {
        let bytes = sample.header.encode();
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut garbled = bytes;
            garbled[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&garbled).is_err(), "bit {bit} of {}", sample.name);
        }
    }
}

/// The specification names the limits and codes that the code has.
#[test]
fn the_specification_agrees_with_the_code() {
    let page = include_str!("../PROTOCOL.md");
    let has = |words: &str| assert!(page.contains(words), "PROTOCOL.md does not say {words:?}");
    for code in ErrorCode::ALL {
        let retriable = if code.retriable() { " yes " } else { " " };
        has(&format!("| {} | `{code:?}` |{retriable}|", code as u16));
    }
    for message in MessageType::ALL {
        has(&format!("| {} | `{message:?}`", message as u16));
    }
    let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
    has(&format!("at most {} (`FRAME_BODY_BYTES_MAX`)", mib(FRAME_BODY_BYTES_MAX as usize)));
    has(&format!("up to {} KiB (`HELLO_BODY_BYTES_MAX`)", limits::HELLO_BODY_BYTES_MAX >> 10));
    has(&format!("1 to {} bytes of UTF-8 (`NAMESPACE_BYTES_MAX`)", limits::NAMESPACE_BYTES_MAX));
    has(&format!("1 to {} bytes (`KEY_BYTES_MAX`)", thousands(limits::KEY_BYTES_MAX)));
    has(&format!("0 to {} (`VALUE_BYTES_MAX`)", mib(limits::VALUE_BYTES_MAX)));
    has(&format!("1 to {} bytes (`SUBJECT_BYTES_MAX`)", thousands(limits::SUBJECT_BYTES_MAX)));
    has(&format!("up to {} (`TEXT_BYTES_MAX`)", mib(limits::TEXT_BYTES_MAX)));
    has(&format!("up to {} (`PAYLOAD_BYTES_MAX`)", mib(limits::PAYLOAD_BYTES_MAX)));
    has(&format!("up to {} (`RELATIONS_MAX`)", thousands(limits::RELATIONS_MAX)));
    has(&format!("up to {} (`TAGS_MAX`) of 1 to {} bytes", limits::TAGS_MAX, limits::TAG_BYTES_MAX));
    has(&format!("1 to {} finite f32 (`VECTOR_DIMENSIONS_MAX`)", thousands(limits::VECTOR_DIMENSIONS_MAX)));
    has(&format!("from {:e} to {:e} (`VECTOR_NORM_MIN`", limits::VECTOR_NORM_MIN, limits::VECTOR_NORM_MAX));
    has(&format!("1 to {} operations (`BATCH_OPS_MAX`)", thousands(limits::BATCH_OPS_MAX)));
    has(&format!("up to {} (`SCAN_ITEMS_MAX`)", thousands(limits::SCAN_ITEMS_MAX as usize)));
    let (hits, candidates) = (limits::RECALL_HITS_MAX, limits::RECALL_CANDIDATES_MAX);
    has(&format!("{} (`RECALL_HITS_MAX`; 0: {})", thousands(hits as usize), limits::RECALL_HITS_DEFAULT));
    let default = limits::RECALL_CANDIDATES_DEFAULT;
    has(&format!("{} (`RECALL_CANDIDATES_MAX`; 0: {default})", thousands(candidates as usize)));
    has(&format!("{} of their bodies (`IN_FLIGHT_BYTES_MAX`)", mib(limits::IN_FLIGHT_BYTES_MAX as usize)));
    has(&format!("more than {} of replies wait to be fetched (`OUTPUT_BYTES_HIGH`)", mib(limits::OUTPUT_BYTES_HIGH)));
    has(&format!("{} (`REPLIES_BYTES_MAX`)", mib(limits::REPLIES_BYTES_MAX)));
    has(&format!("less than {} (`SESSION_WINDOW`)", thousands(limits::SESSION_WINDOW as usize)));
    has(&format!("at most {} (`APPEND_ENTRIES_MAX`)", thousands(limits::APPEND_ENTRIES_MAX)));
    has(&format!("1 to {} (`VOTERS_MAX`)", limits::VOTERS_MAX));
}

fn thousands(number: usize) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

/// Reads a body in full as its type. `Err` where it is refused; anything else than a result is a defect.
fn walk(header: &FrameHeader, body: &Body) -> Result<(), ()> {
    fn copied<M: Message + std::fmt::Debug>(body: &Body) -> Result<(), ()> {
        let copy = read::<M>(body).map_err(drop)?;
        assert!(!format!("{copy:?}").is_empty());
        Ok(())
    }
    let message = MessageType::from_wire(header.message_type).expect("of a sample");
    if message.reply().is_some() && message != MessageType::Hello {
        // A refusal for its meaning is fine, as long as it is worded from bytes inside the body.
        let _accepted_or_worded = message_body(message, body);
    }
    match message {
        MessageType::Hello => copied::<Hello>(body),
        MessageType::HelloReply => {
            let hello = read::<HelloReply>(body).map_err(drop)?;
            let _accepted_or_worded = validate::hello_reply(&hello);
            Ok(())
        }
        MessageType::Write => {
            all_inside(access::<ArchivedCommand>(body).map_err(drop)?, body);
            copied::<Command>(body)
        }
        MessageType::WriteReply => copied::<WriteReply>(body),
        MessageType::Get => copied::<GetRequest>(body),
        MessageType::GetReply => copied::<GetReply>(body),
        MessageType::GetGrain => copied::<GetGrainRequest>(body),
        MessageType::GetGrainReply => copied::<GetGrainReply>(body),
        MessageType::Scan => copied::<ScanRequest>(body),
        MessageType::ScanReply => copied::<ScanReply>(body),
        MessageType::Recall => copied::<RecallRequest>(body),
        MessageType::RecallReply => copied::<RecallReply>(body),
        MessageType::Status => copied::<StatusRequest>(body),
        MessageType::StatusReply => copied::<StatusReply>(body),
        MessageType::PeerHello => copied::<PeerHello>(body),
        MessageType::PeerHelloReply => copied::<PeerHelloReply>(body),
        MessageType::PreVote => copied::<PreVoteRequest>(body),
        MessageType::Vote => copied::<VoteRequest>(body),
        MessageType::VoteReply => copied::<VoteReply>(body),
        MessageType::Append => copied::<AppendRequest>(body),
        MessageType::AppendReply => copied::<AppendReply>(body),
        MessageType::TransferLeader => copied::<TransferLeaderRequest>(body),
        MessageType::TransferLeaderReply => copied::<TransferLeaderReply>(body),
        MessageType::AddLearner => copied::<AddLearner>(body),
        MessageType::ChangeMembership => copied::<ChangeMembership>(body),
        MessageType::MembershipReply => copied::<MembershipReply>(body),
        MessageType::Error => copied::<ErrorReply>(body),
    }
}

/// The bound that senders cut their appends by.
#[test]
fn an_entry_takes_no_more_than_its_body_and_the_documented_overhead() {
    assert!(std::mem::size_of::<ArchivedLogEntry>() <= limits::APPEND_ENTRY_OVERHEAD_BYTES);
    let append = samples().into_iter().find(|sample| sample.name == "append").expect("a sample");
    let mut request = read::<AppendRequest>(&append.body).expect("valid");
    let without = archive(&AppendRequest { entries: Vec::new(), ..request.clone() }).len();
    for entry in &mut request.entries {
        entry.body = Body::copy_from(&[1; 1001]);
    }
    let bound = without + request.entries.len() * (1001 + limits::APPEND_ENTRY_OVERHEAD_BYTES);
    assert!(archive(&request).len() <= bound);
}

/// Every part of a command that was accepted lies inside its body.
fn all_inside(command: &ArchivedCommand, body: &Body) {
    let range = body.as_ptr_range();
    let inside = |bytes: &[u8]| {
        let part = bytes.as_ptr_range();
        assert!(bytes.is_empty() || (range.start <= part.start && part.end <= range.end), "read outside of the body");
    };
    for operation in command.operations.iter() {
        inside(operation.namespace().as_bytes());
        match operation {
            ArchivedOperation::Put { key, value, .. } => [key, value].into_iter().for_each(|part| inside(part)),
            ArchivedOperation::Delete { key, .. } => inside(key),
            ArchivedOperation::CompareAndSet { key, expected, value, .. } => {
                inside(key);
                if let ArchivedExpected::Value(bytes) = expected {
                    inside(bytes);
                }
                value.iter().for_each(|value| inside(value));
            }
            ArchivedOperation::PutGrain { grain } => {
                inside(grain.subject.as_bytes());
                inside(&grain.payload);
                grain.text.iter().for_each(|text| inside(text.as_bytes()));
                grain.tags.iter().for_each(|tag| inside(tag.as_bytes()));
                for relation in grain.relations.iter() {
                    inside(relation.predicate.as_bytes());
                    inside(relation.object.as_bytes());
                }
                if let Some(vector) = grain.vector.as_ref() {
                    let part = vector.as_ptr_range();
                    assert!(range.start <= part.start.cast() && part.end.cast() <= range.end, "outside of the body");
                }
            }
            ArchivedOperation::DeleteGrain { .. } => {}
        }
    }
}

/// A peer computes CRCs over whatever it likes, so the checks behind the CRC must stand alone: every bit of every
/// sample flipped, one at a time.
#[test]
fn flipped_bits_behind_a_right_crc_are_refused_or_harmless() {
    let (mut refused, mut harmless) = (0, 0);
    for sample in samples() {
        for bit in 0..sample.body.len() * 8 {
            let mut bytes = sample.body.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match walk(&sample.header, &Body::copy_from(&bytes)) {
                Ok(()) => harmless += 1,
                Err(()) => refused += 1,
            }
        }
    }
    assert!(refused > 1000 && harmless > 1000, "both occur: {refused} refused, {harmless} harmless");
}

#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    Word(usize, u32),
    Truncate(usize),
    Extend(usize),
    Copy(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (any::<usize>(), prop_oneof![any::<u32>(), 0_u32..200, (0_u32..200).prop_map(u32::wrapping_neg)])
            .prop_map(|(at, word)| Change::Word(at, word)),
        1 => any::<usize>().prop_map(Change::Truncate),
        1 => (1_usize..100).prop_map(Change::Extend),
        1 => (any::<usize>(), any::<usize>(), 1_usize..40).prop_map(|(from, to, n)| Change::Copy(from, to, n)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let length = bytes.len().max(1);
    match *change {
        Change::Byte(at, byte) => bytes.iter_mut().skip(at % length).take(1).for_each(|found| *found = byte),
        Change::Word(at, word) => {
            let at = (at % length) & !3;
            if let Some(found) = bytes.get_mut(at..at + 4) {
                found.copy_from_slice(&word.to_le_bytes());
            }
        }
        Change::Truncate(at) => bytes.truncate(at % length),
        Change::Extend(count) => bytes.resize(bytes.len() + count, 0),
        Change::Copy(from, to, count) => {
            let (from, to) = (from % length, to % length);
            let count = count.min(bytes.len() - from.max(to).min(bytes.len()));
            bytes.copy_within(from..from + count, to);
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["", "[a-z]{1,8}", "\\PC{0,40}"]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

fn grain() -> impl Strategy<Value = Grain> {
    let relation = (text(), text()).prop_map(|(predicate, object)| Relation { predicate, object });
    let vector = prop::option::of(prop::collection::vec(-1e6_f32..1e6, 0..20));
    let rest = (prop::collection::vec(relation, 0..4), prop::collection::vec(text(), 0..4), bytes());
    (any::<[u8; 16]>(), text(), text(), prop::option::of(text()), vector, rest).prop_map(
        |(id, namespace, subject, text, vector, (relations, tags, payload))| Grain {
            id: GrainId(id),
            namespace,
            subject,
            text,
            vector,
            relations,
            tags,
            payload,
        },
    )
}

fn hit() -> impl Strategy<Value = SearchHit> {
    let leg = || prop::option::of((1_u32..300, -10_f32..10.0).prop_map(|(rank, score)| LegHit { rank, score }));
    (any::<[u8; 16]>(), text(), 0_f32..1.0, 1_u32..300, (leg(), leg(), leg()), prop::option::of(grain())).prop_map(
        |(id, subject, score, rank, (text, vector, relation), grain)| SearchHit {
            id: GrainId(id),
            subject,
            score,
            rank,
            text,
            vector,
            relation,
            grain,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let expected = prop_oneof![
        Just(Expected::Absent),
        any::<u64>().prop_map(|version| Expected::Version(Version(version))),
        bytes().prop_map(Expected::Value),
    ];
    prop_oneof![
        (text(), bytes(), bytes(), any::<u64>()).prop_map(|(namespace, key, value, ttl_ms)| Operation::Put {
            namespace,
            key,
            value,
            ttl_ms
        }),
        (text(), bytes()).prop_map(|(namespace, key)| Operation::Delete { namespace, key }),
        (text(), bytes(), expected, prop::option::of(bytes())).prop_map(|(namespace, key, expected, value)| {
            Operation::CompareAndSet { namespace, key, expected, value }
        }),
        grain().prop_map(|grain| Operation::PutGrain { grain }),
        (text(), any::<[u8; 16]>()).prop_map(|(namespace, id)| Operation::DeleteGrain { namespace, id: GrainId(id) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn tampered_archives_are_refused_or_harmless(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let all = samples();
        let sample = which.get(&all);
        let mut bytes = sample.body.to_vec();
        for change in &changes {
            apply(&mut bytes, change);
        }
        let _refused_or_harmless = walk(&sample.header, &Body::copy_from(&bytes));
    }

    #[test]
    fn tampered_commands_are_refused_or_harmless(changes in prop::collection::vec(change(), 1..4)) {
        let body = archive(&command());
        let mut bytes = body.to_vec();
        for change in &changes {
            apply(&mut bytes, change);
        }
        let header = FrameHeader::for_body(MessageType::Write, 1, &bytes);
        let _refused_or_harmless = walk(&header, &Body::copy_from(&bytes));
    }

    #[test]
    fn recalls_round_trip_to_the_same_bytes(hits in prop::collection::vec(hit(), 0..6), grains in any::<u64>()) {
        let reply = RecallReply { hits, grains };
        let body = archive(&reply);
        let copy = read::<RecallReply>(&body).expect("just archived");
        prop_assert_eq!(&copy, &reply);
        prop_assert_eq!(archive(&copy), body);
    }

    #[test]
    fn scans_round_trip_to_the_same_bytes(
        items in prop::collection::vec((bytes(), any::<u64>(), bytes()), 0..20),
        more: bool,
    ) {
        let item = |(key, version, value)| ScanItem { key, version: Version(version), value };
        let reply = ScanReply { items: items.into_iter().map(item).collect(), more };
        let body = archive(&reply);
        let copy = read::<ScanReply>(&body).expect("just archived");
        prop_assert_eq!(&copy, &reply);
        prop_assert_eq!(archive(&copy), body);
    }

    /// Archiving is a function of the value: replicas and retries may compare bytes.
    #[test]
    fn commands_round_trip_to_the_same_bytes(operations in prop::collection::vec(operation(), 0..8)) {
        let command = Command { operations };
        let body = archive(&command);
        let copy = read::<Command>(&body).expect("just archived");
        prop_assert_eq!(&copy, &command);
        prop_assert_eq!(archive(&copy), body.clone());
        all_inside(access::<ArchivedCommand>(&body).expect("just archived"), &body);
    }
}
