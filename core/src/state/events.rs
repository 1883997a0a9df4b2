//! What apply tells the indexes, in log order.

use super::grain::GrainRef;
use super::key::{NamespaceId, Scope};
use gristmill_rpc::ids::{GrainId, Version};

/// A change that the indexes of recall follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexEvent<'a> {
    /// A grain was stored; it replaces any of the same namespace and id.
    PutGrain {
        /// The namespace.
        namespace: NamespaceId,
        /// The grain's id.
        id: GrainId,
        /// Its version.
        version: Version,
        /// The grain.
        grain: GrainRef<'a>,
        /// What it replaces, as it was before the command.
        old: Option<GrainRef<'a>>,
    },
    /// A grain that existed was removed.
    DeleteGrain {
        /// The namespace.
        namespace: NamespaceId,
        /// The grain's id.
        id: GrainId,
        /// The log index that removed it.
        version: Version,
        /// The grain, as it was before the command.
        old: GrainRef<'a>,
    },
}

/// Who follows the changes. Called during apply: cheap, and it cannot fail; what takes long is queued.
pub trait IndexSink {
    /// A change of an applied command. Commands that did not take effect cause none.
    fn index(&mut self, event: IndexEvent<'_>);
}

/// Follows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoIndex;

impl IndexSink for NoIndex {
    fn index(&mut self, _event: IndexEvent<'_>) {}
}

/// Keys that follow from a grain and live in the store with it: the six orders of its relations.
///
/// Apply asks for the keys of the old and of the new grain and writes the difference. So for one scope, id and grain the
/// keys must always be the same. Their records are empty, and outside the state root.
pub trait DerivedKeys {
    /// Visits the logical keys of a grain. Visiting a key twice is visiting it once.
    fn visit(&self, scope: Scope, id: GrainId, grain: &GrainRef<'_>, visit: &mut dyn FnMut(Vec<u8>));
}

/// Derives no keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDerivedKeys;

impl DerivedKeys for NoDerivedKeys {
    fn visit(&self, _scope: Scope, _id: GrainId, _grain: &GrainRef<'_>, _visit: &mut dyn FnMut(Vec<u8>)) {}
}
