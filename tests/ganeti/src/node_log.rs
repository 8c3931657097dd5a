//! The log of Ganeti's node daemon: which scripts it called, and how long each took.

use std::time::Duration;

/// How the log names a script of ours, up to the script's own name.
const SCRIPT: &str = "RunCmd /usr/share/ganeti/extstorage/archipelago/";

/// A script that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub action: String,
    /// Until the process of the daemon that called it wrote its next line: never shorter than the script ran.
    pub time: Duration,
}

/// The calls that `log` tells of, in their order.
#[must_use]
pub fn calls(log: &str) -> Vec<Call> {
    let lines: Vec<Line<'_>> = log.lines().filter_map(Line::parse).collect();
    let call = |(index, line): (usize, &Line<'_>)| {
        let action = line.text.split_once(SCRIPT)?.1;
        let end = action.find([',', ' ']).unwrap_or(action.len());
        let next = lines[index + 1..]
            .iter()
            .find(|next| next.process == line.process)?;
        Some(Call {
            action: action[..end].to_owned(),
            time: next.time.saturating_sub(line.time),
        })
    };
    lines.iter().enumerate().filter_map(call).collect()
}

/// A line: `2026-11-30 01:54:52,626: ganeti-noded pid=440 INFO text`.
struct Line<'a> {
    /// Since midnight.
    time: Duration,
    process: &'a str,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Line<'a>> {
        let (stamp, rest) = line.split_once(": ganeti-noded ")?;
        let (process, text) = rest.split_once(' ')?;
        let (_, clock) = stamp.split_once(' ')?;
        let mut numbers = clock.split([':', ',']).map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let seconds = (next()? * 60 + next()?) * 60 + next()?;
        Some(Line {
            time: Duration::from_secs(seconds) + Duration::from_millis(next()?),
            process,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_lasts_until_the_next_line_of_the_same_process() {
        let log = "2026-11-30 01:54:52,626: ganeti-noded pid=440 INFO RunCmd /usr/share/ganeti/extstorage/archipelago/attach\n\
             2026-11-30 01:54:52,630: ganeti-noded pid=441 INFO RunCmd /usr/bin/true\n\
             Traceback\n\
             2026-11-30 01:54:52,646: ganeti-noded pid=440 INFO RunCmd /usr/share/ganeti/extstorage/archipelago/grow, output file 'x'\n\
             2026-11-30 01:54:53,677: ganeti-noded pid=440 INFO 192.0.2.1:38698 POST /blockdev_grow HTTP/1.1 200\n";
        let found: Vec<(String, u128)> = calls(log)
            .into_iter()
            .map(|call| (call.action, call.time.as_millis()))
            .collect();
        let expected = [("attach".to_owned(), 20), ("grow".to_owned(), 1031)];
        assert_eq!(found, expected);
    }
}
