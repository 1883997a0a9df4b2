//! openraft's own suite for log stores, over each of ours. Its state machine is a minimal one with snapshots, since the suite
//! exercises both; ours has none in this version.

use super::super::types::{Entry, RaftLogId, RaftStoredMembership, ReplicaId, TypeConfig};
use super::*;
use futures_util::{Stream, StreamExt};
use gristmill_wal::{LogNumber, Wal, WalOptions};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, Snapshot, SnapshotMeta, StorageError};
use std::io;
use std::path::Path;
use tempfile::TempDir;

#[derive(Clone, Default)]
struct SuiteMachine(Rc<RefCell<SuiteState>>);

#[derive(Default)]
struct SuiteState {
    applied: Option<RaftLogId>,
    membership: RaftStoredMembership,
    snapshot: Option<SnapshotMetaOf<TypeConfig>>,
}

impl RaftSnapshotBuilder<TypeConfig> for SuiteMachine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        let mut state = self.0.borrow_mut();
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        state.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for SuiteMachine {
    type SnapshotData = ();
    type SnapshotBuilder = SuiteMachine;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        let state = self.0.borrow();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, _responder): (Entry, _) = item?;
            let mut state = self.0.borrow_mut();
            state.applied = Some(entry.log_id);
            if let Some(membership) = entry.get_membership() {
                state.membership = RaftStoredMembership::new(Some(entry.log_id), membership);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SuiteMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, (): ()) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, ()>>> {
        Ok(self.0.borrow().snapshot.clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct InMemory;

impl StoreBuilder<TypeConfig, MemoryLog, SuiteMachine> for InMemory {
    async fn build(&self) -> Result<((), MemoryLog, SuiteMachine), StorageError<TypeConfig>> {
        Ok(((), MemoryLog::new(config().shard), SuiteMachine::default()))
    }
}

#[test]
fn openrafts_storage_suite_passes_in_memory() {
    on_executor(Suite::test_all(InMemory)).unwrap();
}

struct OnWal {
    parent: &'static str,
}

impl StoreBuilder<TypeConfig, WalLog, SuiteMachine, TempDir> for OnWal {
    async fn build(&self) -> Result<(TempDir, WalLog, SuiteMachine), StorageError<TypeConfig>> {
        let directory = tempfile::tempdir_in(self.parent).unwrap();
        let (wal, _report) = Wal::open(directory.path(), LogNumber(0), WalOptions::small()).await.unwrap();
        let log = WalLog::new(wal, config().shard, WalLogOptions::default());
        Ok((directory, log, SuiteMachine::default()))
    }
}

#[test]
fn openrafts_storage_suite_passes_on_the_wal() {
    on_executor(Suite::test_all(OnWal { parent: "/tmp" })).unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "asked before any core runs")]
fn openrafts_storage_suite_passes_on_the_wal_without_direct_io() {
    if Path::new("/dev/shm").is_dir() {
        on_executor(Suite::test_all(OnWal { parent: "/dev/shm" })).unwrap();
    }
}

#[test]
fn the_suites_node_ids_are_ours() {
    assert_eq!(ReplicaId::from(5).to_string(), "5.1");
}
