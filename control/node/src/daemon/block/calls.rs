//! Calls on devices, which may block: each runs on its own thread, and is abandoned after a timeout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};

/// Marks a call as abandoned when the wait for it ends, also when the waiting task is dropped.
struct AbandonOnDrop(Arc<AtomicBool>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        // Relaxed: the flag is a hint and publishes no other data.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a call that may block. It is abandoned after `timeout`, or when the returned future is dropped; then its argument returns `false`.
pub(crate) async fn blocking<T: Send + 'static>(
    timeout: Duration,
    call: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let given_up = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&given_up);
    let _abandon = AbandonOnDrop(given_up);
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

/// Pauses, on a thread for calls that may block.
pub(crate) fn pause(time: Duration) {
    let time = nix::poll::PollTimeout::try_from(time).unwrap_or(nix::poll::PollTimeout::ZERO);
    // Only a pause: a signal that ends it early does no harm.
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
            sent.map_err(|lost| Error::new(ErrorCode::Internal, lost.to_string()))
        });
        let dropped = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(dropped.is_err(), "it had not begun, or has ended");
        assert_eq!(given_up.recv_timeout(Duration::from_secs(5)), Ok(true));
    }
}
