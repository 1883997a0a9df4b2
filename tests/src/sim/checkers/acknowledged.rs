//! An acknowledged write stands in its shard's log, at the index that its client was told, with its session and sequence; and no write
//! took effect twice.
//!
//! The logs come from the disks, so this asks neither the state nor the protocol: a write that is in the log of no replica is lost,
//! whatever reads say.

use super::Broken;
use super::logs::ShardLog;
use crate::sim::history::{Change, KeyId, Record, ValueId, WriteEnd, WriteRecord};
use gristmill_rpc::ids::{ShardId, Version};
use std::collections::BTreeMap;

/// What a run has acknowledged.
#[derive(Default)]
pub struct Acknowledged {
    /// Session and sequence of each acknowledged write, by place.
    writes: BTreeMap<(ShardId, u64), (u64, u64)>,
    versions: BTreeMap<(KeyId, ValueId), Version>,
}

impl Acknowledged {
    /// Takes in what clients were told.
    pub fn note(&mut self, records: &[Record]) -> Result<(), Broken> {
        for record in records {
            match record {
                Record::Write(write) => self.note_write(write)?,
                Record::Read(read) => {
                    for (key, seen) in &read.seen {
                        if let Some((value, version)) = seen {
                            self.note_version(*key, *value, *version)?;
                        }
                    }
                }
                Record::Grain(_) => {}
                Record::Absurd(text) => return Err(Broken::new("answers", text.clone())),
            }
        }
        Ok(())
    }

    fn note_write(&mut self, write: &WriteRecord) -> Result<(), Broken> {
        let (WriteEnd::Applied { version, .. } | WriteEnd::Failed { version, .. }) = write.end else { return Ok(()) };
        let who = (write.session, write.sequence);
        let before = *self.writes.entry((write.shard, version.0)).or_insert(who);
        if before != who {
            let detail =
                format!("shard {}: {before:?} and {who:?} were both told version {}", write.shard.0, version.0);
            return Err(Broken::new("acknowledged", detail));
        }
        if matches!(write.end, WriteEnd::Applied { .. }) {
            for (key, change) in &write.changes {
                if let Change::Put(value) | Change::Swap { new: Some(value), .. } = change {
                    self.note_version(*key, *value, version)?;
                }
            }
        }
        Ok(())
    }

    /// A value that shows up under two versions was written twice by one command.
    fn note_version(&mut self, key: KeyId, value: ValueId, version: Version) -> Result<(), Broken> {
        let before = *self.versions.entry((key, value)).or_insert(version);
        if before == version {
            return Ok(());
        }
        let detail =
            format!("{key:?} held {value:?} with the versions {} and {}: it applied twice", before.0, version.0);
        Err(Broken::new("acknowledged", detail))
    }

    /// Every acknowledged write is in `log`, which holds all that its shard has committed.
    pub fn judge(&self, shard: ShardId, log: &ShardLog) -> Result<(), Broken> {
        let of_shard = self.writes.range((shard, 0)..=(shard, u64::MAX));
        for (&(_, index), &(session, sequence)) in of_shard {
            let found = log.entries.get(&index).and_then(|entry| entry.command);
            if found != Some((session, sequence)) {
                let detail = format!(
                    "shard {}: session {session:x} sequence {sequence} was acknowledged at {index}, where the log holds {found:x?}",
                    shard.0
                );
                return Err(Broken::new("acknowledged", detail));
            }
        }
        Ok(())
    }

    /// Acknowledged writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether nothing was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::logs::LogEntry;
    use super::*;
    use crate::sim::history::ReadRecord;

    const KEY: KeyId = KeyId { space: 0, key: 1 };

    fn write(sequence: u64, version: u64) -> Record {
        Record::Write(WriteRecord {
            client: 0,
            session: 9,
            sequence,
            shard: ShardId(1),
            invoked: sequence * 2,
            returned: sequence * 2 + 1,
            changes: vec![(KEY, Change::Put(ValueId(sequence)))],
            grains: Vec::new(),
            end: WriteEnd::Applied { version: Version(version), duplicate: false },
        })
    }

    fn log(entries: &[(u64, u64)]) -> ShardLog {
        let entry =
            |&(index, sequence)| (index, LogEntry { term: 1, token: 1 << 32, digest: 0, command: Some((9, sequence)) });
        ShardLog { entries: entries.iter().map(entry).collect(), ..ShardLog::default() }
    }

    #[test]
    fn a_lost_or_replaced_write_is_seen() {
        let mut checker = Acknowledged::default();
        checker.note(&[write(1, 5), write(2, 6)]).expect("nothing wrong");
        assert_eq!(checker.len(), 2);
        assert_eq!(checker.judge(ShardId(1), &log(&[(5, 1), (6, 2), (7, 3)])), Ok(()));
        assert_eq!(checker.judge(ShardId(0), &log(&[])), Ok(()), "another shard's");
        assert!(checker.judge(ShardId(1), &log(&[(5, 1)])).is_err(), "lost");
        assert!(checker.judge(ShardId(1), &log(&[(5, 1), (6, 3)])).is_err(), "replaced");
    }

    #[test]
    fn one_place_for_two_writes_and_two_places_for_one_are_seen() {
        assert!(Acknowledged::default().note(&[write(1, 5), write(2, 5)]).is_err());
        let seen = |version| {
            let seen = vec![(KEY, Some((ValueId(1), Version(version))))];
            Record::Read(ReadRecord { client: 1, invoked: 50, returned: 51, seen })
        };
        assert!(Acknowledged::default().note(&[write(1, 5), seen(5)]).is_ok());
        assert!(Acknowledged::default().note(&[write(1, 5), seen(5), seen(8)]).is_err(), "it applied again at 8");
        assert!(Acknowledged::default().note(&[Record::Absurd("no order".into())]).is_err());
    }
}
