//! What must hold, one checker a file. Each takes plain data, so that its tests can show it a bad history.
//!
//! | checker | what it judges |
//! |---|---|
//! | [`one_leader`] | at most one replica leads a term |
//! | [`votes`] | what a replica promised never goes back, across restarts too |
//! | [`unflushed`] | a candidate's log is durable before it asks for votes |
//! | [`amnesia`] | what a replica's log made durable is there after a restart |
//! | [`proof`] | what a log proves to be durable is there after a restart, or the replica refuses, on a damaged disk too |
//! | [`logs`] | log matching, leader completeness, fencing: from the logs on the disks |
//! | [`state_equality`] | equal applied index, equal state root |
//! | [`acknowledged`] | an acknowledged write stands in the log, once, at the version that its client was told |
//! | [`linearizable`] | each key behaves as one register |
//! | [`grains`] | an acknowledged grain is read and recalled |
//!
//! Scans are judged by [`linearizable`] too: a page is a read of every key in its range; that it is sorted and complete is checked
//! where it arrives.

pub mod acknowledged;
pub mod amnesia;
pub mod grains;
pub mod linearizable;
pub mod logs;
pub mod one_leader;
pub mod proof;
pub mod state_equality;
pub mod unflushed;
pub mod votes;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The checker's name.
    pub checker: &'static str,
    /// What was found.
    pub detail: String,
}

impl Broken {
    /// A promise of `checker`'s.
    pub fn new(checker: &'static str, detail: impl Into<String>) -> Broken {
        Broken { checker, detail: detail.into() }
    }
}
