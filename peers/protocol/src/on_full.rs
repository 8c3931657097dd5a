//! A volume's policy for a full pool, in text, records and requests.
//!
//! Text: `wait`, `wait:SECONDS` or `report`. In numbers: the seconds that a write waits, 0 for `report`, none for ever.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};

/// What happens to a write without space in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OnFull {
    /// It fails with [`ErrorCode::NoSpace`] at once.
    Report,
    /// It waits until there is space, and fails only when the volume has been without space for as long as `limit`.
    Wait {
        /// Whole seconds, at least one; `None`: it waits for ever.
        limit: Option<Duration>,
    },
}

impl OnFull {
    /// How long a write waits for space; `None`: for ever.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        match self {
            OnFull::Report => Some(Duration::ZERO),
            OnFull::Wait { limit } => limit,
        }
    }

    /// The limit in seconds, at least one for a policy that waits.
    #[must_use]
    pub fn to_seconds(self) -> Option<u32> {
        match self {
            OnFull::Report => Some(0),
            OnFull::Wait { limit } => {
                limit.map(|limit| u32::try_from(limit.as_secs()).unwrap_or(u32::MAX).max(1))
            }
        }
    }

    /// The policy with this limit in seconds, as [`OnFull::to_seconds`] returns it.
    #[must_use]
    pub fn from_seconds(seconds: Option<u32>) -> Self {
        match seconds {
            Some(0) => OnFull::Report,
            seconds => OnFull::Wait {
                limit: seconds.map(|seconds| Duration::from_secs(u64::from(seconds))),
            },
        }
    }
}

/// Waits for ever: a guest cannot distinguish a full pool from a broken disk.
impl Default for OnFull {
    fn default() -> Self {
        OnFull::Wait { limit: None }
    }
}

impl fmt::Display for OnFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_seconds() {
            None => f.write_str("wait"),
            Some(0) => f.write_str("report"),
            Some(seconds) => write!(f, "wait:{seconds}"),
        }
    }
}

impl FromStr for OnFull {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let seconds = match text {
            "wait" => Some(None),
            "report" => Some(Some(0)),
            _ => text.strip_prefix("wait:").and_then(|digits| {
                // A sign is not a digit.
                let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
                let seconds = digits.parse().ok().filter(|seconds| *seconds > 0);
                seconds.filter(|_| plain).map(Some)
            }),
        };
        seconds.map(OnFull::from_seconds).ok_or_else(|| {
            let message = format!(
                "`{text}` is not a policy for a full pool: wait, wait:SECONDS (1 to {}) or report",
                u32::MAX
            );
            Error::new(ErrorCode::Invalid, message)
        })
    }
}

impl TryFrom<String> for OnFull {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<OnFull> for String {
    fn from(policy: OnFull) -> String {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_its_text_and_its_seconds() {
        for (text, seconds) in [
            ("wait", None),
            ("report", Some(0)),
            ("wait:1", Some(1)),
            ("wait:86400", Some(86_400)),
            ("wait:4294967295", Some(u32::MAX)),
        ] {
            let policy = OnFull::from_seconds(seconds);
            assert_eq!(text.parse(), Ok(policy));
            assert_eq!(
                (policy.to_string(), policy.to_seconds()),
                (text.to_owned(), seconds)
            );
            assert_eq!(
                policy.limit(),
                seconds.map(|seconds| Duration::from_secs(seconds.into()))
            );
        }
        assert_eq!("wait".parse(), Ok(OnFull::default()));
        let short = OnFull::Wait {
            limit: Some(Duration::from_millis(1)),
        };
        assert_eq!(short.to_seconds(), Some(1), "it does not report");
    }

    #[test]
    fn anything_else_is_refused_with_the_forms() {
        for text in [
            "",
            "0",
            "wait:",
            "wait:0",
            "wait:00",
            "wait:-1",
            "wait:+1",
            "wait:1.5",
            "wait:1s",
            "wait: 1",
            "wait:4294967296",
            "Wait",
            "WAIT",
            "report:1",
            "reports",
            " wait",
            "wait,",
            "5",
            "none",
        ] {
            let error = text.parse::<OnFull>().unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid, "{text}");
            let forms = "wait, wait:SECONDS (1 to 4294967295) or report";
            assert!(error.message.contains(forms), "{}", error.message);
        }
    }
}
