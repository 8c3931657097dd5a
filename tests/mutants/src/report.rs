//! What a run of a test says.

use std::fmt;

/// Letters of a test's name in the table.
const SHORT: usize = 44;

/// How a mutant fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// These tests failed; how far they had come.
    Caught(Vec<String>, Option<String>),
    /// Nobody noticed.
    Survived,
    /// The compiler has noticed: that proves nothing.
    NotBuilt,
    /// No answer in time, which is not a failed assertion.
    TimedOut,
    /// It ended otherwise than by a failed test: what it said last.
    Broken(String),
}

/// A verdict and what it cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of the test.
    pub verdict: Verdict,
    /// Seconds that the test ran.
    pub test: u64,
    /// Seconds that the build took.
    pub build: u64,
}

impl Verdict {
    /// Of a test program that ended with `code` and said `output`.
    #[must_use]
    pub fn of(code: Option<i32>, output: &str) -> Verdict {
        match code {
            Some(0) => Verdict::Survived,
            Some(124 | 137) => Verdict::TimedOut,
            _ => {
                let failed = failed_tests(output);
                if failed.is_empty() {
                    let last: Vec<&str> = output.lines().rev().take(3).collect();
                    return Verdict::Broken(last.join(" / "));
                }
                Verdict::Caught(failed, steps_of(output))
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Caught(tests, steps) => {
                let first = tests.first().map(|test| short(test)).unwrap_or_default();
                write!(to, "`{first}`")?;
                if tests.len() > 1 {
                    write!(to, " and {} more", tests.len() - 1)?;
                }
                match steps {
                    Some(steps) => write!(to, " | {steps}"),
                    None => write!(to, " | 1 test"),
                }
            }
            Verdict::Survived => write!(to, "NOBODY |"),
            Verdict::NotBuilt => write!(to, "NOT BUILT |"),
            Verdict::TimedOut => write!(to, "TIMED OUT |"),
            Verdict::Broken(last) => write!(to, "BROKEN: {last} |"),
        }
    }
}

/// The last part of a test's path, as far as a table has room.
fn short(test: &str) -> String {
    let name = test.rsplit("::").next().unwrap_or(test);
    match name.get(..SHORT) {
        Some(beginning) => format!("{beginning}…"),
        None => name.to_owned(),
    }
}

/// Names of the tests that failed.
fn failed_tests(output: &str) -> Vec<String> {
    let line = |line: &str| {
        // With `--nocapture` what the test said may stand between its name and its end: the list at the end has them all.
        let name = line.strip_prefix("    ")?;
        let word = !name.is_empty() && !name.contains(char::is_whitespace);
        word.then(|| name.to_owned())
    };
    output
        .rsplit_once("\nfailures:\n")
        .map(|(_, list)| list.lines().map_while(line).collect())
        .unwrap_or_default()
}

/// How far a search had come when it failed: images, and the sequence or seed.
#[must_use]
pub fn steps_of(output: &str) -> Option<String> {
    let images = output
        .lines()
        .find_map(|line| line.strip_prefix("found after "));
    let replay = output.lines().find_map(|line| {
        let words = line.strip_prefix("replay: ")?.split_whitespace();
        let word = words
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| matches!(*name, "SEED" | "SEQUENCE"))?;
        Some(format!("{} {}", word.0.to_lowercase(), word.1))
    });
    // Of a power cut: which moment of a recording.
    let point = output.lines().find_map(|line| {
        let (_, rest) = line.split_once(", point ")?;
        Some(format!("point {}", rest.split_once(':')?.0))
    });
    let inputs = output
        .lines()
        .find_map(|line| line.trim().strip_prefix("successes: "))
        .map(|successes| format!("{successes} random histories"));
    let parts: Vec<String> = images
        .map(str::to_owned)
        .into_iter()
        .chain(replay)
        .chain(point)
        .chain(inputs)
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_tells_a_failed_assertion_from_everything_else() {
        let output = "running 1 test\nfound after 190 images\nreplay: SEQUENCE=9,0 FIRST_SEED=0 cargo test\n\
                      \nfailures:\n    tests::every_short\n\ntest result: FAILED. 0 passed\n";
        let caught = Verdict::of(Some(101), output);
        assert_eq!(
            caught.to_string(),
            "`every_short` | 190 images, sequence 9,0"
        );
        let cut = "ext4 seed 1, point 3: a block is missing\nfailures:\n    survives\n\n";
        let caught = Verdict::of(Some(101), cut);
        assert_eq!(caught.to_string(), "`survives` | point 3");
        assert_eq!(Verdict::of(Some(0), output), Verdict::Survived);
        assert_eq!(Verdict::of(Some(124), output), Verdict::TimedOut);
        assert!(matches!(
            Verdict::of(Some(101), "error: no such package"),
            Verdict::Broken(_)
        ));
    }
}
