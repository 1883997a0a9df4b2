//! How answers look: text for people, JSON for scripts.

use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Grain, LegHit, ScanItem, SearchHit, Versioned};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Bytes as a JSON string where they are UTF-8, else as hex under another name.
fn put_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = json!(text),
        Err(_) => object[format!("{name}_hex")] = json!(hex(bytes)),
    }
}

/// Bytes as hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |out, byte| out + &format!("{byte:02x}"))
}

pub(super) fn id(id: GrainId) -> String {
    hex(&id.0)
}

pub(super) fn versioned(value: &Versioned) -> Value {
    let mut out = json!({ "found": true, "version": value.version.0 });
    put_bytes(&mut out, "value", &value.value);
    out
}

pub(super) fn item(item: &ScanItem) -> Value {
    let mut out = json!({ "version": item.version.0 });
    put_bytes(&mut out, "key", &item.key);
    put_bytes(&mut out, "value", &item.value);
    out
}

pub(super) fn grain(grain: &Grain) -> Value {
    let relations: Vec<Value> =
        grain.relations.iter().map(|relation| json!([relation.predicate, relation.object])).collect();
    let mut out = json!({
        "id": id(grain.id),
        "namespace": grain.namespace,
        "subject": grain.subject,
        "text": grain.text,
        "vector": grain.vector,
        "relations": relations,
        "tags": grain.tags,
    });
    put_bytes(&mut out, "payload", &grain.payload);
    out
}

fn leg(leg: Option<LegHit>) -> Value {
    leg.map_or(Value::Null, |leg| json!({ "rank": leg.rank, "score": leg.score }))
}

pub(super) fn hit(hit: &SearchHit) -> Value {
    json!({
        "rank": hit.rank,
        "id": id(hit.id),
        "subject": hit.subject,
        "score": hit.score,
        "legs": { "text": leg(hit.text), "vector": leg(hit.vector), "relation": leg(hit.relation) },
        "grain": hit.grain.as_ref().map(grain),
    })
}

/// The legs that found a hit, with their ranks: `text#1 vector#3`.
pub(crate) fn legs(hit: &SearchHit) -> String {
    [("text", hit.text), ("vector", hit.vector), ("relation", hit.relation)]
        .into_iter()
        .filter_map(|(name, leg)| leg.map(|leg| format!("{name}#{}", leg.rank)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// One line for a hit.
pub(crate) fn hit_line(hit: &SearchHit) -> String {
    format!("{:>3}. {:.5}  {}  [{}]", hit.rank, hit.score, hit.subject, legs(hit))
}

/// Writes to stdout. A reader that has gone away (`| head`) is no failure.
pub(crate) fn print(text: &[u8]) {
    let mut out = io::stdout().lock();
    // Nothing can be told to anybody once stdout is gone.
    let _ = out.write_all(text).and_then(|()| out.flush());
}

/// Writes to stdout what must arrive whole. Here too a reader may go away.
pub(super) fn print_all(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// One line on stdout.
pub(crate) fn line(text: &str) {
    print(format!("{text}\n").as_bytes());
}
