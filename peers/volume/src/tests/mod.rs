//! The volume peer between fakes.

mod basics;
mod fakes;
mod random;
mod safety;
mod wire;
mod world;
