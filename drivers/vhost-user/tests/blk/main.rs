//! The device behind its socket, on a volume in memory: through the client crate `virtio-driver` and through a front end
//! written by hand.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "an integration test is all test"
)]

mod driver;
mod errors;
mod front_end;
mod full;
mod host;
mod hostile;
mod log;
mod recovery;
mod requests;
mod shortage;
mod specification;
mod unshared;
