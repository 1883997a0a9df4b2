//! `status`: one JSON object, put together by the core that was asked from every core's part. `rpc/PROTOCOL.md` names its
//! fields.

use super::core::Core;
use super::reply::{Answer, ReplyTo};
use crate::metrics::Snapshot;
use crate::shard::replica::ShardStatus;
use gristmill_rpc::body::archive;
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::schema::StatusReply;
use gristmill_shardexec::sync::oneshot;
use gristmill_shardexec::{Class, CoreId, spawn};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Events of one core that a status shows, the latest.
pub(crate) const EVENTS_SHOWN_MAX: usize = 256;

/// One core's part.
#[derive(Debug, Serialize)]
pub(crate) struct CoreStatus {
    pub(crate) core: u16,
    pub(crate) connections: i64,
    pub(crate) shards: Vec<ShardStatus>,
    /// Only where asked for.
    #[serde(flatten)]
    pub(crate) figures: Option<Snapshot>,
}

impl CoreStatus {
    pub(crate) fn new(
        core: CoreId,
        connections: i64,
        shards: Vec<ShardStatus>,
        figures: Option<Snapshot>,
    ) -> CoreStatus {
        let figures = figures.map(|mut figures| {
            figures.events.drain(..figures.events.len().saturating_sub(EVENTS_SHOWN_MAX));
            figures
        });
        CoreStatus { core: core.0, connections, shards, figures }
    }

    /// As JSON bytes, the way it travels between cores.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain numbers and strings serialise")
    }
}

/// Asks every core and answers with the whole.
pub(crate) fn gather(core: &Rc<Core>, verbose: bool, reply: ReplyTo) {
    let core = Rc::clone(core);
    spawn(Class::Request, "status", async move {
        let answer = gather_parts(&core, verbose).await;
        reply.answer(answer);
    });
}

async fn gather_parts(core: &Rc<Core>, verbose: bool) -> Answer {
    let mut parts = vec![serde_json::to_value(core.status(verbose)).expect("plain numbers and strings serialise")];
    for other in core.peers().others() {
        let (sender, receiver) = oneshot::channel();
        core.peers().ask_status(other, verbose, ReplyTo::task(sender));
        let lost = || Rejection::new(ErrorCode::Internal, format!("{other} did not answer"));
        let part = receiver.await.map_err(|_| lost())??;
        parts.push(serde_json::from_slice(&part).map_err(|_| lost())?);
    }
    parts.sort_by_key(|part| part["core"].as_u64());
    let json = core.node().describe(parts);
    Ok(archive(&StatusReply { json: json.to_string() }))
}

/// What is the same on every core.
#[derive(Debug, Clone)]
pub(crate) struct NodeDescription {
    pub(crate) store: [u8; 16],
    pub(crate) data_dir: String,
    pub(crate) io_driver: &'static str,
    pub(crate) listen: String,
    pub(crate) core_ports: Vec<u16>,
}

impl NodeDescription {
    /// The status of the node, from the parts of its cores.
    pub(crate) fn describe(&self, mut cores: Vec<Value>) -> Value {
        let mut shards: Vec<Value> = Vec::new();
        let mut events: Vec<Value> = Vec::new();
        let mut event_counts: BTreeMap<String, u64> = BTreeMap::new();
        let verbose = cores.iter().any(|core| core.get("events").is_some());
        for core in &mut cores {
            let number = core["core"].clone();
            for mut shard in take_list(core, "shards") {
                shard["core"] = number.clone();
                shards.push(shard);
            }
            events.append(&mut take_list(core, "events"));
            let counts = core.as_object_mut().and_then(|core| core.remove("event_counts"));
            for (name, count) in counts.as_ref().and_then(Value::as_object).into_iter().flatten() {
                *event_counts.entry(name.clone()).or_default() += count.as_u64().unwrap_or_default();
            }
        }
        shards.sort_by_key(|shard| shard["shard"].as_u64());
        events.sort_by_key(|event| ["at_ms", "core", "number"].map(|field| event[field].as_u64()));
        let ready = shards.iter().all(|shard| shard["phase"] == "serving");
        let mut status = json!({
            "server": concat!("gristmill ", env!("CARGO_PKG_VERSION")),
            "store": self.store.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")),
            "data_dir": self.data_dir,
            "io_driver": self.io_driver,
            "listen": self.listen,
            "core_ports": self.core_ports,
            "ready": ready,
            "shards": shards,
            "cores": cores,
        });
        if verbose {
            status["events"] = json!(events);
            status["event_counts"] = json!(event_counts);
        }
        status
    }
}

/// Takes a list out of a core's part.
fn take_list(part: &mut Value, field: &str) -> Vec<Value> {
    match part.as_object_mut().and_then(|part| part.remove(field)) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Event, Labels, Registry, names};

    fn part(core: u16, events: u64, verbose: bool) -> Value {
        let registry = Registry::new(core);
        registry.counter(names::REQUESTS, Labels::new()).add(7);
        for number in 0..events {
            registry.emit(100 + number, Event::LogFailed { log: core, reason: "full".into() });
        }
        let status = CoreStatus::new(CoreId(core), 3, Vec::new(), verbose.then(|| registry.snapshot()));
        serde_json::from_slice(&status.to_json()).expect("JSON")
    }

    fn node() -> NodeDescription {
        let (data_dir, listen) = ("/data".into(), "127.0.0.1:1".into());
        NodeDescription { store: [0xab; 16], data_dir, io_driver: "posix", listen, core_ports: vec![1, 2] }
    }

    #[test]
    fn events_of_all_cores_stand_together_and_metrics_by_core() {
        let status = node().describe(vec![part(0, 2, true), part(1, 1, true)]);
        let events = status["events"].as_array().expect("a list");
        let order: Vec<_> = events.iter().map(|event| (event["at_ms"].as_u64(), event["core"].as_u64())).collect();
        assert_eq!(order, [(Some(100), Some(0)), (Some(100), Some(1)), (Some(101), Some(0))]);
        assert_eq!(status["event_counts"], json!({ "log_failed": 3 }));
        for core in status["cores"].as_array().expect("a list") {
            assert_eq!(core["metrics"][0]["name"], "requests_total");
            assert_eq!((&core["metrics"][0]["value"], &core["connections"]), (&json!(7), &json!(3)));
            assert!(core.get("events").is_none(), "told once");
        }
    }

    #[test]
    fn a_short_status_has_neither() {
        let status = node().describe(vec![part(0, 1, false)]);
        assert_eq!(status["cores"], json!([{ "core": 0, "connections": 3 }]));
        assert!(status.get("events").is_none());
    }

    #[test]
    fn only_the_latest_events_are_shown_and_all_are_counted() {
        let shown = EVENTS_SHOWN_MAX as u64;
        let status = node().describe(vec![part(0, shown + 5, true)]);
        let events = status["events"].as_array().expect("a list");
        assert_eq!((events.len(), &events[0]["number"]), (EVENTS_SHOWN_MAX, &json!(5)));
        assert_eq!(status["event_counts"]["log_failed"], json!(shown + 5));
    }
}
