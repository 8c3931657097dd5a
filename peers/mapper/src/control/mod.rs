//! What control asks of the mapper, and what follows from it in the background.

mod collect;
mod named;
mod reclaim;
mod request;
mod rollback;
mod usage;

pub(crate) use collect::start_if_due;
pub(crate) use request::answer;
