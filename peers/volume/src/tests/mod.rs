//! The volume peer between fakes.

mod basics;
mod credits;
mod fakes;
mod history;
mod journaled;
mod late_failures;
mod random;
mod safety;
mod space;
mod status;
mod wire;
mod world;
