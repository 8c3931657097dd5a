//! Time, and waiting for other processes: the one place of the test programs that reads the clock and sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Between two polls of another process, which sends no event: at first, and at most. In between it is [`PART`] of the time that has passed:
/// dozens of waits that poll each millisecond leave a busy machine no time for what they wait for.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_millis(50);
/// One part of this many.
const PART: u32 = 16;

/// The time by the system's clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "measures other processes")]
pub fn now() -> Instant {
    Instant::now()
}

/// Sleeps for `time`, if the length of the pause is under test. To wait for a condition: [`wait_until`].
#[expect(clippy::disallowed_methods, reason = "the length of a pause")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Polls `look` until it returns a value.
///
/// # Errors
/// Those of `look`; or, if `timeout` is over, the text of `missing`.
pub fn wait_until<T>(
    timeout: Duration,
    missing: impl Fn() -> String,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        let passed = began.elapsed();
        ensure!(passed < timeout, "after {timeout:?} {}", missing());
        pause((passed / PART).clamp(INTERVAL_MIN, INTERVAL_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_what_is_found_an_error_or_its_deadline() {
        let timeout = Duration::from_millis(20);
        let missing = || "nothing came".to_owned();
        let mut left = 3;
        let found = wait_until(Duration::from_secs(20), missing, || {
            left -= 1;
            Ok((left == 0).then_some(7))
        });
        assert_eq!(found.unwrap(), 7);
        let late = wait_until(timeout, missing, || Ok(None::<()>)).unwrap_err();
        assert_eq!(late.to_string(), "after 20ms nothing came");
        let failed = wait_until::<()>(timeout, missing, || anyhow::bail!("broken"));
        assert_eq!(failed.unwrap_err().to_string(), "broken");
    }
}
