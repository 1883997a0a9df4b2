//! `status`: one JSON object, put together by the core that was asked from every core's part.

use super::core::Core;
use super::reply::{Answer, ReplyTo};
use crate::metrics::Snapshot;
use crate::shard::replica::ShardStatus;
use gristmill_rpc::body::archive;
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::schema::StatusReply;
use gristmill_shardexec::sync::oneshot;
use gristmill_shardexec::{Class, spawn};
use serde::Serialize;
use serde_json::{Value, json};
use std::rc::Rc;

/// One core's part.
#[derive(Debug, Serialize)]
pub(crate) struct CoreStatus {
    pub(crate) core: u16,
    pub(crate) connections: usize,
    pub(crate) shards: Vec<ShardStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<Snapshot>,
}

impl CoreStatus {
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
        for core in &mut cores {
            let number = core["core"].clone();
            let of_core = core.as_object_mut().and_then(|core| core.remove("shards"));
            for mut shard in of_core.and_then(|shards| shards.as_array().cloned()).unwrap_or_default() {
                shard["core"] = number.clone();
                shards.push(shard);
            }
        }
        shards.sort_by_key(|shard| shard["shard"].as_u64());
        let ready = shards.iter().all(|shard| shard["phase"] == "serving");
        json!({
            "server": concat!("gristmill ", env!("CARGO_PKG_VERSION")),
            "store": self.store.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")),
            "data_dir": self.data_dir,
            "io_driver": self.io_driver,
            "listen": self.listen,
            "core_ports": self.core_ports,
            "ready": ready,
            "shards": shards,
            "cores": cores,
        })
    }
}
