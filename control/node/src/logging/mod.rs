//! Logs: one line per event on stderr; under systemd the level comes first, in the format of journald (`sd-daemon(3)`).
//!
//! Invariants
//! - A log only informs: no event panics, ends a process or blocks its thread for longer than `output` allows. A line that cannot be
//!   written is dropped and counted, and the count is written once writing works again.
//! - Equal events are written at once and then counted (`limit`), so a repeated fault cannot fill a disk.
//! - The log file of a daemon in the background has a length limit ([`rotation`]).
//! - A thread that panics inside this module does not wait for itself: locks are only tried.

mod limit;
mod output;
pub(crate) mod rotation;

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};

use archipelago_runtime::{Clock, SystemClock};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use limit::{Limits, Repeated};
use output::Output;

/// Environment variable with a filter in the format of `tracing-subscriber`: `info`, `archipelago_node=debug`.
pub(crate) const FILTER_VARIABLE: &str = "ARCHIPELAGO_LOG";

/// This process's log.
static LOG: OnceLock<Log> = OnceLock::new();

/// Sends events of this process to stderr; each line contains `who`. A second call changes nothing.
pub(crate) fn start(who: &'static str) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let log = LOG.get_or_init(|| Log {
        head: Head {
            who,
            pid: std::process::id(),
            journal,
        },
        limits: Mutex::default(),
        output: Output::default(),
    });
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_unset| EnvFilter::new("info"));
    let started = tracing_subscriber::registry()
        .with(filter)
        .with(Lines(log))
        .try_init();
    drop(started);
}

/// Writes the counts that are due: of lines that could not be written, and of repeated events. Called periodically, and by each event.
pub(crate) fn catch_up() {
    let Some(log) = LOG.get() else { return };
    let now = SystemClock.now();
    if let Some(mut limits) = log.limits() {
        let due = limits.due(now);
        drop(limits);
        for Repeated { level, text, times } in due {
            log.write(level, &text, times);
        }
    }
    log.output
        .catch_up(std::io::stderr(), |text| log.head.line(Level::WARN, text));
}

#[derive(Debug)]
struct Log {
    head: Head,
    limits: Mutex<Limits>,
    output: Output,
}

impl Log {
    /// `None`: another thread holds the lock, or this one does while it panics.
    fn limits(&self) -> Option<std::sync::MutexGuard<'_, Limits>> {
        match self.limits.try_lock() {
            Ok(limits) => Some(limits),
            Err(TryLockError::Poisoned(error)) => Some(PoisonError::into_inner(error)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn write(&self, level: Level, text: &str, repeated: u64) {
        let line = if repeated == 0 {
            self.head.line(level, text)
        } else {
            let text = format!("{text} (repeated {repeated} times since it was written last)");
            self.head.line(level, &text)
        };
        self.output.write(std::io::stderr(), &line, |text| {
            self.head.line(Level::WARN, text)
        });
    }
}

/// The beginning of each line.
#[derive(Debug)]
struct Head {
    who: &'static str,
    pid: u32,
    journal: bool,
}

impl Head {
    fn line(&self, level: Level, text: &str) -> String {
        let mut line = String::with_capacity(text.len() + 64);
        // Writing to a `String` cannot fail; if the clock cannot be read, its field stays empty.
        let _written = if self.journal {
            write!(line, "<{}>{}: ", priority(level), self.who)
        } else {
            let _timed = SystemTime.format_time(&mut Writer::new(&mut line));
            write!(line, " {level:5} {}[{}]: ", self.who, self.pid)
        };
        // One event is one line, whatever the text contains.
        line.extend(text.chars().map(|c| if c == '\n' { ' ' } else { c }));
        line.push('\n');
        line
    }
}

/// Priority of syslog: error 3, warning 4, informational 6, debug 7.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Formats events as lines.
#[derive(Debug)]
struct Lines(&'static Log);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = String::new();
        // If a field cannot be formatted, the text ends there.
        let _whole = DefaultFields::new().format_fields(Writer::new(&mut text), event);
        let metadata = event.metadata();
        let repeated = match self.0.limits() {
            Some(mut limits) => {
                let now = SystemClock.now();
                limits.admit(now, metadata.callsite(), *metadata.level(), &text)
            }
            None => Some(0),
        };
        if let Some(repeated) = repeated {
            self.0.write(*metadata.level(), &text, repeated);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_priorities_of_syslog() {
        let levels = [
            Level::ERROR,
            Level::WARN,
            Level::INFO,
            Level::DEBUG,
            Level::TRACE,
        ];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
    }

    #[test]
    fn an_event_is_one_line() {
        let head = Head {
            who: "test",
            pid: 7,
            journal: true,
        };
        assert_eq!(head.line(Level::WARN, "a\nb"), "<4>test: a b\n");
        let head = Head {
            journal: false,
            ..head
        };
        assert!(
            head.line(Level::WARN, "a\nb")
                .ends_with("Z WARN  test[7]: a b\n")
        );
    }
}
