//! A volume that a process keeps open over deaths and restarts of the node.
//!
//! * [`Opener`]: opens one volume, again and again; [`Connection`]: what comes of it.
//! * [`Channel`]: the state machine of an open volume: live, away, closed. Gives a [`Return`] when it is back.
//! * [`Reservation`]: nobody else gets the volume meanwhile.
//! * [`Outage`]: how long requests wait.
//! * [`Carrier`]: a channel as a table of requests sees it, so that such a table can be tested without one.
//!
//! One design decision: this crate opens, and says what has become of a channel. Which requests were in flight, and how they are sent
//! again, belongs to the table of requests of each driver: a file's requests are cut into sectors, those of NBD are not.
//!
//! What a driver does:
//! 1. It takes what is done from [`Channel::client`]. What a client that is gone gives back was not answered: it is kept.
//! 2. If the client is gone, [`Channel::leave`]: `true` begins the outage; `false` is the end.
//! 3. [`Channel::come_back`], whenever the doorbell has rung: what was kept is sent again before anything newer.
//! 4. Requests fail once [`Outage::is_over_limit`], until the channel is back.

#![forbid(unsafe_code)]

mod carrier;
mod channel;
mod opener;
mod outage;
mod reopening;
mod reservation;

pub use carrier::Carrier;
pub use channel::{Channel, Incarnation, Return};
pub use opener::{Connection, Opener};
pub use outage::Outage;
pub use reservation::Reservation;
