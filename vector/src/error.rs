//! What a caller's vector or question can be refused for.

use crate::limits::{COMPONENT_ABS_MAX, DIMENSION_MAX, K_MAX, ROWS_MAX};

/// Why a vector, a query or an index was refused. Nothing has changed when one of these is returned.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum VectorError {
    /// An index of vectors without components.
    #[error("a vector needs at least one component: choose a dimension from 1 to {DIMENSION_MAX}")]
    DimensionZero,
    /// An index of vectors that are too long.
    #[error("dimension {dimension} is over the limit of {DIMENSION_MAX}: use a smaller embedding or truncate it")]
    DimensionTooLarge {
        /// What was asked for.
        dimension: usize,
    },
    /// The vector is of another dimension than the index.
    #[error(
        "the vector has {given} components, this index holds vectors of {expected}: embed with the model that the index was filled with"
    )]
    WrongDimension {
        /// The index's dimension.
        expected: usize,
        /// The vector's.
        given: usize,
    },
    /// A component is NaN or infinite.
    #[error("component {component} of the vector is {value}, which cannot be compared: send finite numbers only")]
    NotFinite {
        /// Index of the first such component.
        component: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A component is so large that products with it could overflow.
    #[error(
        "component {component} of the vector is {value}, over the limit of ±{COMPONENT_ABS_MAX}: scale the vectors down"
    )]
    TooLarge {
        /// Index of the first such component.
        component: usize,
        /// Its value.
        value: f32,
    },
    /// A vector of zeros has no direction, so it has no cosine.
    #[error("the vector is all zeros, so it has no cosine with any other: send a vector with a length, or none")]
    ZeroLength,
    /// The segment holds as many rows as it may.
    #[error("the segment holds {ROWS_MAX} vectors, its limit: split the shard")]
    Full,
    /// A search for nothing, or for too much.
    #[error("{k} hits were asked for: ask for 1 to {K_MAX}")]
    WrongK {
        /// What was asked for.
        k: usize,
    },
}
