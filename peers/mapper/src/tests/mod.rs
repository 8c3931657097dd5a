//! Tests of more than one module, and what tests share.

mod golden;
mod limits;
mod task;

pub(crate) use golden::check;
pub(crate) use task::run_task;
