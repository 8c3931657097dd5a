//! The clients, one for each way.

pub(crate) mod nbd;
pub(crate) mod posix;
pub(crate) mod segment;
pub(crate) mod vhost_user;
