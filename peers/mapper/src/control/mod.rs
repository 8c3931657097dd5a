//! What control asks of the mapper, and what follows from it in the background.

mod collect;
mod reclaim;
mod request;

pub(crate) use collect::start_if_due;
pub(crate) use request::answer;
