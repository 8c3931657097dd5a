//! Last words: a process of ours that cannot go on says why, to whoever started it, on its standard output.
//!
//! One line of JSON, a [`Failure`] as the API answers it. The log is for people and may be anywhere; an exit code tells the
//! kind only. So code, message and hint reach the person at the command line as they were where it went wrong.

use std::io::Write;

use archipelago_protocol::{Error, ErrorCode};

use crate::api::types::Failure;

/// Longest last words that are listened to: a message names a few things, each a path or a name.
pub const LEN_MAX: u64 = 64 << 10;

/// Says why this process ends. Never panics: it may be a panic that ends it.
pub fn say(error: &Error) {
    let failure = Failure {
        error: error.clone(),
    };
    let Ok(line) = serde_json::to_string(&failure) else {
        return;
    };
    let mut stdout = std::io::stdout().lock();
    // A listener that has gone has the exit code and the log.
    let _heard = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The last words in what a process has said; `None`: it was killed, or died of something it did not foresee.
#[must_use]
pub fn hear(output: &[u8]) -> Option<Error> {
    let line = output
        .split(|byte| *byte == b'\n')
        .rfind(|line| !line.is_empty())?;
    let failure: Failure = serde_json::from_slice(line).ok()?;
    Some(failure.error)
}

/// The last words of a process whose thread `thread` panicked.
#[must_use]
pub fn of_panic(thread: &str, panic: &std::panic::PanicHookInfo<'_>) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("thread `{thread}` {panic}").replace('\n', " "),
    )
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::ErrorCode;

    use super::*;

    #[test]
    fn the_last_line_is_heard_whatever_came_before() {
        let error = Error::new(ErrorCode::Damaged, "`a`\nis \"odd\"").with_hint("look");
        let line = serde_json::to_string(&Failure {
            error: error.clone(),
        })
        .unwrap();
        assert_eq!(
            hear(format!("noise\n{line}\n").as_bytes()),
            Some(error.clone())
        );
        assert_eq!(hear(line.as_bytes()), Some(error));
        for silent in ["", "\n\n", "ready\n", "{\"error\":"] {
            assert_eq!(hear(silent.as_bytes()), None, "{silent}");
        }
    }
}
