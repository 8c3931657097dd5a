//! What block devices of this host share, whose requests a data process answers, whatever driver of the kernel they are of.
//!
//! | module | subject |
//! |---|---|
//! | `calls` | calls that block |
//! | `claim` | a device that nobody else uses |
//! | `users` | who has a device open |

pub(super) mod calls;
pub(super) mod claim;
mod users;
