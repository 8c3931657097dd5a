//! What is in use only for a moment: a guest has just ended, an import or export was just broken off, and the volume is being
//! closed. Whoever comes meanwhile waits for it, in bounds, and without keeping others from their turn.

use std::time::Duration;

use archipelago_protocol::Error;

/// How long what is being closed is waited for: longer than the last flush of a busy disk takes, shorter than people wait.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Hindrance {
    /// Another try will fail too.
    Final(Error),
    /// Something uses the volume that may be about to end.
    Passing(Error),
}

impl From<Error> for Hindrance {
    fn from(error: Error) -> Hindrance {
        Hindrance::Final(error)
    }
}

/// The tries of one request.
#[derive(Debug)]
pub(crate) struct Tries {
    deadline: tokio::time::Instant,
}

impl Tries {
    pub(crate) fn new() -> Tries {
        Tries {
            deadline: tokio::time::Instant::now() + TIMEOUT,
        }
    }

    /// What came of a try; `None`, after a wait: try again.
    pub(crate) async fn outcome<T>(&self, tried: Result<T, Hindrance>) -> Option<Result<T, Error>> {
        match tried {
            Ok(done) => Some(Ok(done)),
            Err(Hindrance::Final(error)) => Some(Err(error)),
            Err(Hindrance::Passing(error)) if tokio::time::Instant::now() >= self.deadline => {
                Some(Err(error))
            }
            Err(Hindrance::Passing(_)) => {
                tokio::time::sleep(RETRY).await;
                None
            }
        }
    }
}
