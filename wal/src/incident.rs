//! What happened to a running log that whoever runs the node should hear of, each told once.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use gristmill_shardexec::abort_on_panic_async;

use crate::error::WalError;
use crate::scan::Damage;
use crate::token::FencingToken;
use crate::types::GroupId;
use crate::wal::Wal;
use crate::writer::Shared;

/// Incidents that wait to be fetched; further ones are only counted in [`WalStats`](crate::WalStats).
pub const INCIDENTS_MAX: usize = 64;

/// Something that happened to a running log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incident {
    /// A deposed leader's write was refused.
    StaleToken {
        /// Group written to.
        group: GroupId,
        /// First token of the durable vote's term.
        have: FencingToken,
        /// First token of the writer's term.
        got: FencingToken,
    },
    /// A record that is needed was read back damaged.
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// What is wrong, and where.
        damage: Box<Damage>,
    },
    /// No segment can be prepared, for lack of space or of something else. The log tries again; told once until a try succeeds.
    Unprepared {
        /// What it lacks, and what to do.
        reason: String,
    },
    /// A write failed, and with it the log, for good.
    Failed {
        /// The operating system's words, and for what.
        reason: String,
    },
}

impl Incident {
    fn of(error: &WalError) -> Option<Incident> {
        match error {
            WalError::StaleToken { group, have, got } => {
                Some(Incident::StaleToken { group: *group, have: *have, got: *got })
            }
            WalError::Corrupt { path, damage } => {
                Some(Incident::Damaged { path: path.clone(), damage: damage.clone() })
            }
            WalError::DiskFull { .. } | WalError::Exhausted(_) => {
                Some(Incident::Unprepared { reason: error.to_string() })
            }
            WalError::Failed(_) => Some(Incident::Failed { reason: error.to_string() }),
            _ => None,
        }
    }
}

impl Shared {
    /// Keeps what an error tells until it is fetched, if it tells of an incident and there is room.
    pub fn note(&self, error: &WalError) {
        let Some(incident) = Incident::of(error) else { return };
        let mut inner = self.inner.borrow_mut();
        inner.counters.damaged_reads += u64::from(matches!(incident, Incident::Damaged { .. }));
        if inner.incidents.len() < INCIDENTS_MAX {
            inner.incidents.push_back(incident);
        }
        self.incident.notify_one();
    }
}

impl Wal {
    /// Waits for the next incident; `None` once the log has stopped and all were told. One task may wait.
    pub async fn next_incident(&self) -> Option<Incident> {
        abort_on_panic_async("the log's incidents", self.incident()).await
    }

    async fn incident(&self) -> Option<Incident> {
        let shared = self.shared();
        loop {
            {
                let mut inner = shared.inner.borrow_mut();
                if let Some(incident) = inner.incidents.pop_front() {
                    return Some(incident);
                }
                if inner.stopped.is_some() {
                    return None;
                }
            }
            shared.incident.notified().await;
        }
    }

    /// Calls `observe` after each batch write with the time from its submission to its durability. Replaces an earlier observer.
    pub fn observe_writes(&self, observe: impl Fn(Duration) + 'static) {
        self.shared().write_observer.replace(Some(Rc::new(observe)));
    }
}
