//! Waits for volumes that are in use only for a moment: a guest has just ended, or an import or export was just aborted, and the volume is
//! being closed. A new request for such a volume waits, with a timeout; requests for other volumes are not delayed.

use std::time::Duration;

use archipelago_protocol::Error;

/// Longest wait for a volume that is being closed: longer than the last flush of a busy disk, shorter than people wait.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Why a request was not carried out.
#[derive(Debug)]
pub(crate) enum Hindrance {
    /// Another attempt would fail too.
    Final(Error),
    /// Something uses the volume, but may be about to end.
    Passing(Error),
}

impl From<Error> for Hindrance {
    fn from(error: Error) -> Hindrance {
        Hindrance::Final(error)
    }
}

/// The result of `attempt`, which is repeated while a temporary state prevents it, at most for [`TIMEOUT`].
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn wait_while_passing<T, F>(attempt: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Hindrance>>,
{
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Hindrance::Final(error)) => return Err(error),
            Err(Hindrance::Passing(error)) if tokio::time::Instant::now() >= deadline => {
                return Err(error);
            }
            Err(Hindrance::Passing(_)) => tokio::time::sleep(RETRY).await,
        }
    }
}
