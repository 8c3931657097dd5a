//! Logs: one line an event on stderr; under systemd with the level in front, as journald reads it (`sd-daemon(3)`).

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// Environment variable with a filter, as `tracing-subscriber` reads it: `info`, `archipelago_node=debug`.
pub const FILTER_VARIABLE: &str = "ARCHIPELAGO_LOG";

/// Sends events of this process to stderr; `who` stands in each line. A second call changes nothing.
pub fn start(who: &'static str) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_unset| EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .event_format(Line {
            who,
            pid: std::process::id(),
            journal,
        })
        .try_init();
    drop(started);
}

struct Line {
    who: &'static str,
    pid: u32,
    journal: bool,
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

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(writer, "<{}>{}: ", priority(level), self.who)?;
        } else {
            SystemTime.format_time(&mut writer)?;
            write!(writer, " {level:5} {}[{}]: ", self.who, self.pid)?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
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
}
