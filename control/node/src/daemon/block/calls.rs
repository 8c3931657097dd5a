//! Calls on devices, which block: on threads of their own, and given up after a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};

/// Says that a call is given up, however its wait ends: also when what waits is dropped.
struct GivesUp(Arc<AtomicBool>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        // Relaxed: a hint, which hands nothing over.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls that block, and are given up after a time, or with whoever waits for them.
pub(crate) async fn blocking<T: Send + 'static>(
    timeout: Duration,
    call: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let given_up = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&given_up);
    let _gives_up = GivesUp(given_up);
    let called = tokio::task::spawn_blocking(move || call(&|| !watched.load(Ordering::Relaxed)));
    tokio::pin!(called);
    match tokio::time::timeout(timeout, &mut called).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => Err(Error::new(ErrorCode::Internal, panicked.to_string())),
        Err(_late) => Err(late(timeout)),
    }
}

pub(crate) fn late(timeout: Duration) -> Error {
    let seconds = timeout.as_secs();
    let message = format!("a command on a block device has not returned for {seconds} s");
    Error::new(ErrorCode::Unavailable, message)
}

/// On a thread for calls that block.
pub(crate) fn pause(time: Duration) {
    let time = nix::poll::PollTimeout::try_from(time).unwrap_or(nix::poll::PollTimeout::ZERO);
    // Waiting for nothing: a signal that ends it early does no harm.
    let _interrupted = nix::poll::poll(&mut [], time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_given_up_with_whoever_waits_for_it() {
        let (sender, given_up) = std::sync::mpsc::channel();
        let call = blocking(Duration::from_secs(10), move |goes_on| {
            // Ends by itself, so that a failure is one.
            let ended = (0..2000).any(|_look| {
                pause(Duration::from_millis(5));
                !goes_on()
            });
            let sent = sender.send(ended);
            sent.map_err(|gone| Error::new(ErrorCode::Internal, gone.to_string()))
        });
        let dropped = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(dropped.is_err(), "it had not begun, or has ended");
        assert_eq!(given_up.recv_timeout(Duration::from_secs(5)), Ok(true));
    }
}
