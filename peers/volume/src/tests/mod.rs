//! The volume peer between fakes.

mod basics;
mod carrying;
mod credits;
mod fakes;
mod full;
mod random;
mod safety;
mod wire;
mod world;
