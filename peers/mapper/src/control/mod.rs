//! What control asks of the mapper, and what follows from it in the background.

mod collect;
mod diff;
mod named;
mod reclaim;
mod request;
mod rollback;
mod usage;
mod walk;

pub(crate) use collect::start_if_due;
pub(crate) use request::answer;
