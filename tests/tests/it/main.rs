//! Whole-system tests that need no root and no outside program.
