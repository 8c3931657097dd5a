//! Reports, on the standard output, why a process ends: see [`archipelago_protocol::last_words`].

use std::io::Write;
use std::panic::PanicHookInfo;

use archipelago_protocol::{Error, ErrorCode, last_words};

/// Reports why this process ends. Never panics: a panic may be what ends the process.
pub fn report(error: &Error) {
    let mut stdout = std::io::stdout().lock();
    // If the reader has closed the pipe, the exit code and the log still report the failure.
    let _read = writeln!(stdout, "{}", last_words::encode(error)).and_then(|()| stdout.flush());
}

/// The error of a process whose thread `thread` panicked.
#[must_use]
pub fn of_panic(thread: &str, panic: &PanicHookInfo<'_>) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("thread `{thread}` {panic}").replace('\n', " "),
    )
}
