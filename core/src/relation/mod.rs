//! Relations as a hexastore: each (subject, predicate, object) lies in the store in all six orders, so that any pattern is
//! one contiguous range of keys.
//!
//! ```text
//!  a grain's relations ──apply──▶ six keys each, without a value, in six tables of the store
//!
//!  key:  table, scope | 1st part | 2nd part | 3rd part | grain id      parts escaped (state/key.rs)
//!        \__ RelationsPos: predicate, object, subject __/
//!
//!  pattern (?, is_a, bird) ──plan──▶ RelationsPos, prefix "is_a" "bird" ──scan──▶ grains by number of matches
//! ```
//!
//! After Weiss, Karras and Bernstein, "Hexastore: sextuple indexing for semantic web data management" (VLDB 2008), without
//! its dictionary: the parts stand in the keys.
//!
//! A relation belongs to the grain that states it: apply writes a grain's keys with the grain and takes them away with it
//! (`DerivedKeys`). Two grains may state the same; the grain's id at the end keeps the keys apart.
//!
//! Of the two orders that can answer a pattern, the plan takes the one where subjects come right behind what is given. All
//! relations of a grain have its subject, so a grain's matches lie within one run of the range, and the scan holds the
//! counts of one subject's grains at a time, however long the range is.

mod scan;

pub use scan::RelationScan;

use crate::state::events::DerivedKeys;
use crate::state::grain::GrainRef;
use crate::state::key::{HEAD_BYTES, KeyError, Scope, Table, push_escaped, push_head, split_escaped};
use crate::state::store::KeyRange;
use gristmill_rpc::ids::GrainId;
use std::collections::BTreeSet;

/// A part of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Subject,
    Predicate,
    Object,
}

/// An order in which relations are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Subject, predicate, object.
    Spo,
    /// Subject, object, predicate.
    Sop,
    /// Predicate, subject, object.
    Pso,
    /// Predicate, object, subject.
    Pos,
    /// Object, subject, predicate.
    Osp,
    /// Object, predicate, subject.
    Ops,
}

impl Order {
    /// All of them.
    pub const ALL: [Order; 6] = [Order::Spo, Order::Sop, Order::Pso, Order::Pos, Order::Osp, Order::Ops];

    /// The name, as `explain` gives it.
    pub fn name(self) -> &'static str {
        match self {
            Order::Spo => "spo",
            Order::Sop => "sop",
            Order::Pso => "pso",
            Order::Pos => "pos",
            Order::Osp => "osp",
            Order::Ops => "ops",
        }
    }

    fn table(self) -> Table {
        match self {
            Order::Spo => Table::RelationsSpo,
            Order::Sop => Table::RelationsSop,
            Order::Pso => Table::RelationsPso,
            Order::Pos => Table::RelationsPos,
            Order::Osp => Table::RelationsOsp,
            Order::Ops => Table::RelationsOps,
        }
    }

    fn parts(self) -> [Part; 3] {
        use Part::{Object, Predicate, Subject};
        match self {
            Order::Spo => [Subject, Predicate, Object],
            Order::Sop => [Subject, Object, Predicate],
            Order::Pso => [Predicate, Subject, Object],
            Order::Pos => [Predicate, Object, Subject],
            Order::Osp => [Object, Subject, Predicate],
            Order::Ops => [Object, Predicate, Subject],
        }
    }

    /// Where the subject stands.
    fn subject_at(self) -> usize {
        self.parts().iter().position(|part| *part == Part::Subject).expect("every order has a subject")
    }
}

/// A relation, with the grain that states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelationRef<'a> {
    /// The grain's subject.
    pub subject: &'a str,
    /// For example `is_a`.
    pub predicate: &'a str,
    /// Often another grain's subject.
    pub object: &'a str,
    /// The grain.
    pub grain: GrainId,
}

impl RelationRef<'_> {
    /// Logical key of the relation in one order.
    pub fn key(&self, scope: Scope, order: Order) -> Vec<u8> {
        let length = self.subject.len() + self.predicate.len() + self.object.len();
        let mut key = Vec::with_capacity(HEAD_BYTES + length + 3 * 2 + self.grain.0.len());
        push_head(&mut key, order.table(), scope);
        for part in order.parts() {
            let part = match part {
                Part::Subject => self.subject,
                Part::Predicate => self.predicate,
                Part::Object => self.object,
            };
            push_escaped(&mut key, part.as_bytes());
        }
        key.extend_from_slice(&self.grain.0);
        key
    }
}

/// Splits a relation's key: (the subject as it stands there, the grain).
fn subject_and_grain(key: &[u8], order: Order) -> Result<(&[u8], GrainId), KeyError> {
    let (rest, grain) = key.split_last_chunk::<16>().ok_or(KeyError::Truncated { length: key.len() })?;
    let mut rest = rest.get(HEAD_BYTES..).ok_or(KeyError::Truncated { length: key.len() })?;
    for _ in 0..order.subject_at() {
        (_, rest) = split_escaped(rest)?;
    }
    let (_, behind) = split_escaped(rest)?;
    Ok((&rest[..rest.len() - behind.len()], GrainId(*grain)))
}

/// Derives a grain's relation keys for apply.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelationKeys;

impl DerivedKeys for RelationKeys {
    fn visit(&self, scope: Scope, id: GrainId, grain: &GrainRef<'_>, visit: &mut dyn FnMut(Vec<u8>)) {
        for (predicate, object) in grain.relations() {
            let relation = RelationRef { subject: grain.subject(), predicate, object, grain: id };
            for order in Order::ALL {
                visit(relation.key(scope, order));
            }
        }
    }
}

/// What to look for: `None` matches anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pattern {
    /// The subject.
    pub subject: Option<String>,
    /// The predicate.
    pub predicate: Option<String>,
    /// The object.
    pub object: Option<String>,
}

/// How a pattern is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The index used.
    pub order: Order,
    /// How many of its parts are given.
    pub bound: usize,
    /// The keys that match, and no others.
    pub(super) range: KeyRange,
}

impl Plan {
    /// In words: `pos: predicate, object`.
    pub fn explain(&self) -> String {
        let names = self.order.parts().map(|part| match part {
            Part::Subject => "subject",
            Part::Predicate => "predicate",
            Part::Object => "object",
        });
        format!("{}: {}", self.order.name(), names[..self.bound].join(", "))
    }
}

impl Pattern {
    /// How many distinct relations of a grain match.
    pub fn matches(&self, grain: &GrainRef<'_>) -> u32 {
        let fits = |part: &Option<String>, have: &str| part.as_ref().is_none_or(|part| part == have);
        if !fits(&self.subject, grain.subject()) {
            return 0;
        }
        let relations = grain
            .relations()
            .filter(|(predicate, object)| fits(&self.predicate, predicate) && fits(&self.object, object));
        relations.collect::<BTreeSet<_>>().len() as u32
    }

    /// The index that has all matches in one range. Without any part given, that is the whole of `spo`.
    pub fn plan(&self, scope: Scope) -> Plan {
        let order = match (&self.subject, &self.predicate, &self.object) {
            (Some(_), None, Some(_)) => Order::Sop,
            (Some(_), _, _) | (None, None, None) => Order::Spo,
            (None, Some(_), None) => Order::Pso,
            (None, Some(_), Some(_)) => Order::Pos,
            (None, None, Some(_)) => Order::Osp,
        };
        let mut prefix = Vec::new();
        push_head(&mut prefix, order.table(), scope);
        let parts = order.parts().map(|part| match part {
            Part::Subject => &self.subject,
            Part::Predicate => &self.predicate,
            Part::Object => &self.object,
        });
        let mut bound = 0;
        for part in parts.into_iter().flatten() {
            push_escaped(&mut prefix, part.as_bytes());
            bound += 1;
        }
        Plan { order, bound, range: KeyRange::prefix(prefix) }
    }
}

#[cfg(test)]
mod tests;
