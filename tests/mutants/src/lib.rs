//! Mutants: named ways to break the protocol, each of which a test must notice.
//!
//! A mutant is a piece of source text and what stands there instead (`tests/mutants/*.toml`). It is put into a copy of the
//! sources, never into the sources, so production code has no switches that lose data. Why so: `docs/decisions/`, 6.

#![forbid(unsafe_code)]

pub mod anchor;
mod list;
mod report;
mod run;
mod tree;

pub use anchor::Place;
pub use list::{Edit, List, Mutant, Test};
pub use report::{Outcome, Verdict, steps_of};
pub use run::Runner;
pub use tree::Tree;
