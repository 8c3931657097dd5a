//! Printing: tables for people, one JSON object for scripts, and errors for both.

mod table;
mod tree;

use std::io::{ErrorKind, Write};

use archipelago_protocol::{Error, ErrorCode};
use serde::Serialize;

pub(crate) use archipelago_protocol::date;
pub(crate) use table::{Table, facts};
pub(crate) use tree::{kind_name, tree};

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Prints one JSON object if `json`, else text.
    #[must_use]
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether JSON is printed.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or the text that `text` makes of it.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] if the standard output cannot be written. An output that its reader has closed is not an error.
    ///
    /// # Panics
    /// If `value` cannot be serialised: a bug.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        let mut out = if self.json {
            serde_json::to_string(value).expect("answers have string keys")
        } else {
            text(value)
        };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        let mut stdout = std::io::stdout().lock();
        match stdout
            .write_all(out.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::new(
                ErrorCode::Io,
                format!("standard output: {error}"),
            )),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Prints a note for people, on the standard error.
    pub fn note(self, text: &str) {
        if !self.json {
            // If the standard error is closed, the note is lost.
            let _written = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Prints a failure: for scripts an object on the standard output; for people the error and its hint.
    pub fn fail(self, error: &Error) {
        let text = render(error);
        let written = if self.json {
            writeln!(
                std::io::stdout(),
                "{}",
                serde_json::json!({ "error": error })
            )
            .and_then(|()| writeln!(std::io::stderr(), "{text}"))
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
        // If the output is closed, the exit code still reports the failure.
        drop(written);
    }
}

fn render(error: &Error) -> String {
    let mut text = format!("archipelago: {}", error.message);
    if !error.hint.is_empty() {
        text.push_str("\nhint: ");
        text.push_str(&error.hint);
    }
    text
}
