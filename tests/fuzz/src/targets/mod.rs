//! The targets, by who the bytes come from.

pub(crate) mod blocker;
pub(crate) mod chain;
pub(crate) mod channel;
pub(crate) mod device;
pub(crate) mod front_end;
pub(crate) mod journal;
pub(crate) mod mapper;
pub(crate) mod metadata;
pub(crate) mod nbd;
pub(crate) mod protocol;
pub(crate) mod slots;
