//! The common part of the block devices of this host whose requests a data process answers, for every driver of the kernel.
//!
//! | module | subject |
//! |---|---|
//! | `calls` | calls that may block |
//! | `claim` | checks that nobody else uses a device |
//! | `users` | which process has a device open |

pub(super) mod calls;
pub(super) mod claim;
mod users;
