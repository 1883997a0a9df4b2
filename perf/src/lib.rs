//! Load generation for a whole node.
