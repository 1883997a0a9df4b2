//! The scan of a plan's range: grains by falling number of relations that match, ties by id.

use super::{Plan, subject_and_grain};
use crate::recall::rank::{Ranked, Top};
use crate::state::store::{Direction, KeyRange, Store, StoreError};
use core::ops::ControlFlow;
use gristmill_rpc::ids::GrainId;
use std::collections::BTreeMap;

/// A scan that can stop and go on. If the store changes meanwhile, keys behind the place reached are not looked at again.
pub struct RelationScan {
    plan: Plan,
    /// What is still to be scanned; `None` when all was.
    rest: Option<KeyRange>,
    /// The subject, as it stands in the keys, whose grains are being counted.
    subject: Vec<u8>,
    matches: BTreeMap<GrainId, u32>,
    top: Top<Ranked>,
}

impl RelationScan {
    /// A scan for the `limit` best grains.
    pub fn new(plan: Plan, limit: usize) -> RelationScan {
        let rest = Some(plan.range.clone());
        RelationScan { plan, rest, subject: Vec::new(), matches: BTreeMap::new(), top: Top::new(limit) }
    }

    /// How the pattern is answered.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Looks at up to `budget` relations; only grains that are `admitted` count. Returns whether the scan is complete.
    pub fn step(
        &mut self,
        store: &impl Store,
        budget: usize,
        admitted: &impl Fn(GrainId) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(range) = self.rest.take() else { return Ok(true) };
        let mut seen = 0;
        let mut failed = None;
        let mut next = None;
        store.scan(&range, Direction::Forward, &mut |key, _| {
            if seen == budget.max(1) {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            seen += 1;
            match subject_and_grain(key, self.plan.order) {
                Ok((subject, grain)) => {
                    if subject != self.subject {
                        self.close_subject();
                        self.subject = subject.to_vec();
                    }
                    if admitted(grain) {
                        *self.matches.entry(grain).or_default() += 1;
                    }
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        match next {
            Some(start) => self.rest = Some(KeyRange { start, end: range.end }),
            None => self.close_subject(),
        }
        Ok(self.rest.is_none())
    }

    /// The grains found that are still `admitted`, best first.
    pub fn finish(self, admitted: &impl Fn(GrainId) -> bool) -> Vec<Ranked> {
        assert!(self.rest.is_none(), "the scan is complete");
        let found = self.top.into_sorted().into_iter();
        found.filter(|ranked| admitted(ranked.id)).collect()
    }

    /// All matches of the subject's grains are counted.
    fn close_subject(&mut self) {
        for (id, matches) in std::mem::take(&mut self.matches) {
            self.top.push(Ranked { id, score: matches as f32 });
        }
    }
}
