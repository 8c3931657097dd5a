//! Last words: why a process of ours ends, as one line of JSON on its standard output.
//!
//! The log is for people and may be anywhere; an exit code gives the kind only. By its last words a process reports code, message and hint
//! of its failure to the process that started it.

use serde::{Deserialize, Serialize};

use crate::Error;

/// Longest last words that are read, in bytes: a message contains a few names and paths.
pub const LEN_MAX: u64 = 64 << 10;

/// The line, which has the form of a failure in the API.
#[derive(Debug, Serialize, Deserialize)]
struct LastWords {
    error: Error,
}

/// `error` as one line, without its end.
///
/// # Panics
/// Never: an error has string keys only.
#[must_use]
pub fn encode(error: &Error) -> String {
    let error = error.clone();
    serde_json::to_string(&LastWords { error }).expect("an error has string keys")
}

/// The last words in the `output` of a process. `None`: the process was killed, or ended by an unforeseen fault.
#[must_use]
pub fn decode(output: &[u8]) -> Option<Error> {
    let line = output
        .split(|byte| *byte == b'\n')
        .rfind(|line| !line.is_empty())?;
    let words: LastWords = serde_json::from_slice(line).ok()?;
    Some(words.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn the_last_line_is_read_whatever_comes_before() {
        let error = Error::new(ErrorCode::Damaged, "`a`\nis \"odd\"").with_hint("look");
        let line = encode(&error);
        assert_eq!(
            decode(format!("noise\n{line}\n").as_bytes()),
            Some(error.clone())
        );
        assert_eq!(decode(line.as_bytes()), Some(error));
        for silent in ["", "\n\n", "ready\n", "{\"error\":"] {
            assert_eq!(decode(silent.as_bytes()), None, "{silent}");
        }
    }
}
