//! A log that a server wrote, with one bit of it flipped: `wal verify` and `serve` name the place and refuse.
//!
//! That every bit of every record counts is tested in the log's own `tests/damage.rs`. Here it is the binary that must say so.

use crate::binary;
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::Grain;
use gristmill_tests::{Server, run, scratch, stderr, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Bits flipped, one at a time, spread over all that the server wrote.
const FLIPS: u64 = 64;
/// Where batches begin: behind the header and the slots of marks.
const RECORDS_FROM: u64 = 4 * 4096;

fn verify(dir: &Path, more: &[&str]) -> Output {
    run(binary(), &[&["wal", "verify", dir.to_str().expect("UTF-8")], more].concat())
}

/// A store whose server was told to stop after some writes of each kind; its first segment, and where the records in it end.
fn written_store(dir: &Path) -> (PathBuf, u64) {
    let server = Server::start(binary(), dir, &["--cores", "1", "--shards", "2"]);
    let mut client = server.client();
    for number in 0..40_u8 {
        client.put(&format!("ns{}", number % 4), &[number], &vec![number; 50 * usize::from(number)]).expect("stored");
    }
    client.delete("ns1", &[1]).expect("deleted");
    let grain = Grain {
        id: GrainId::from_name("bread"),
        namespace: "grains".into(),
        subject: "bread".into(),
        text: Some("made of flour".into()),
        vector: Some(vec![1.0, 2.0]),
        relations: Vec::new(),
        tags: vec!["food".into()],
        payload: Vec::new(),
    };
    client.put_grain(grain).expect("stored");
    drop(client);
    let pid = rustix::process::Pid::from_raw(server.id().cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server runs");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");

    let inspected = run(binary(), &["wal", "inspect", "--json", dir.to_str().expect("UTF-8")]);
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    let segments = inspected["logs"][0]["segments"].as_array().expect("segments");
    let used = segments.iter().find(|segment| segment["records"].as_u64() > Some(0)).expect("a segment with records");
    (PathBuf::from(used["path"].as_str().expect("a path")), used["used_bytes"].as_u64().expect("a number"))
}

#[test]
fn verify_names_the_place_of_any_flipped_bit() {
    use std::os::unix::fs::FileExt;
    let dir = scratch();
    let (segment, end) = written_store(dir.path());
    assert!(end > RECORDS_FROM + 16 * 4096, "vacuous: records end at {end}");
    let clean = verify(dir.path(), &[]);
    assert_eq!(clean.status.code(), Some(0), "{}{}", stdout(&clean), stderr(&clean));
    let file = std::fs::File::options().read(true).write(true).open(&segment).expect("the log's segment");
    let flip = |bit: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).expect("readable");
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, bit / 8).expect("writable");
    };
    let bits = (end - RECORDS_FROM) * 8;
    for flipped in 0..FLIPS {
        // At odd distances, so that all bits of a byte and all parts of a record have their turn.
        let bit = RECORDS_FROM * 8 + (flipped * (bits / FLIPS) + flipped * 13) % bits;
        flip(bit);
        let found = verify(dir.path(), &["--json"]);
        let told = (flipped % 8 == 0).then(|| verify(dir.path(), &[]));
        flip(bit);
        assert_eq!(found.status.code(), Some(5), "bit {bit}: {}", stdout(&found));
        let report: Value = serde_json::from_slice(&found.stdout).expect("JSON");
        let covers = |finding: &&Value| {
            let number = |field: &str| finding[field].as_u64().expect("a number");
            let from = number("offset");
            finding["path"].as_str() == segment.to_str() && (from..from + number("bytes")).contains(&(bit / 8))
        };
        let findings = report["logs"][0]["findings"].as_array().expect("findings");
        let named = findings.iter().find(covers).unwrap_or_else(|| panic!("byte {} is not named: {report}", bit / 8));
        assert_eq!(named["class"], "corruption", "it was acknowledged: {named}");
        let place = format!("{} offset {}", segment.display(), named["offset"]);
        if let Some(told) = told {
            assert_eq!(told.status.code(), Some(5), "bit {bit}: {}", stdout(&told));
            assert!(stdout(&told).contains(&place), "{place:?} is missing: {}", stdout(&told));
        }
    }
    let clean = verify(dir.path(), &[]);
    assert_eq!(clean.status.code(), Some(0), "the flips are undone: {}{}", stdout(&clean), stderr(&clean));

    flip((RECORDS_FROM + 100) * 8);
    let before = std::fs::read(&segment).expect("readable");
    let path = dir.path().to_str().expect("UTF-8");
    let refused = run(binary(), &["serve", "--listen", "127.0.0.1:0", "--cores", "1", "--data-dir", path]);
    assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
    let segment_name = segment.file_name().expect("a file").to_str().expect("UTF-8");
    assert!(stderr(&refused).contains(segment_name) && stderr(&refused).contains("offset"), "{}", stderr(&refused));
    assert!(std::fs::read(&segment).expect("readable") == before, "the bytes are untouched");
}
