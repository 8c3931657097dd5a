//! Writes lines to a descriptor that may be full or closed, or that may not be read.
//!
//! | the descriptor | what happens to a line |
//! |---|---|
//! | a full file, a pipe whose reader has closed it | dropped and counted |
//! | a pipe, socket or terminal that is not read | the first line waits for [`READER_TIMEOUT_MS`]; later ones do not wait until it is read again |
//!
//! A line is one `write` of at most [`LINE_LEN_MAX`] bytes, so those of several processes do not mix.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of a line: a pipe accepts so many in one piece (`PIPE_BUF`), and has room for them when it is writable.
const LINE_LEN_MAX: usize = 4096;
/// Longest wait for a slow reader, in milliseconds: the writer's work is more important than the log.
const READER_TIMEOUT_MS: u8 = 20;
/// How often a call is repeated after an interruption by a signal.
const INTERRUPTIONS_MAX: u32 = 8;

/// The state of the descriptor: counters and hints. All accesses are Relaxed, since nothing else is ordered by them.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Lines dropped since the last one that was written.
    dropped: AtomicU64,
    /// `errno` of the last dropped line.
    why: std::sync::atomic::AtomicI32,
    /// Only a part of the last line was written.
    torn: AtomicBool,
}

impl Output {
    /// Writes `line`, which ends with a newline, or counts it as dropped. `head` returns the beginning of lines of this module itself.
    pub(super) fn write(&self, to: impl AsFd, line: &str, head: impl Fn(&str) -> String) {
        if !self.catch_up(&to, head) || !self.send(&to, line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes how many lines were dropped, if any. Returns whether writing works, as far as known.
    pub(super) fn catch_up(&self, to: impl AsFd, head: impl Fn(&str) -> String) -> bool {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped == 0 {
            return true;
        }
        let why = Errno::from_raw(self.why.load(Ordering::Relaxed)).desc();
        let note = head(&format!(
            "{dropped} lines of this log could not be written: {why}"
        ));
        let sent = self.send(to, &note);
        if sent {
            self.dropped.fetch_sub(dropped, Ordering::Relaxed);
        }
        sent
    }

    fn send(&self, to: impl AsFd, line: &str) -> bool {
        let sent = self.try_send(to, line);
        if let Err(errno) = sent {
            self.why.store(errno as i32, Ordering::Relaxed);
        }
        sent.is_ok()
    }

    fn try_send(&self, to: impl AsFd, line: &str) -> Result<(), Errno> {
        let whole;
        let mut bytes = if self.torn.load(Ordering::Relaxed) {
            whole = format!("\n{line}");
            whole.as_bytes()
        } else {
            line.as_bytes()
        };
        let cut;
        if bytes.len() > LINE_LEN_MAX {
            cut = [&bytes[..LINE_LEN_MAX - 1], b"\n"].concat();
            bytes = &cut;
        }
        // After a failure, lines do not wait any more.
        let failing = self.dropped.load(Ordering::Relaxed) > 0;
        let mut written = 0;
        for _again in 0..INTERRUPTIONS_MAX {
            await_writable(&to, if failing { 0 } else { READER_TIMEOUT_MS })?;
            match nix::unistd::write(&to, &bytes[written..]) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(more) => written += more,
                Err(errno) => {
                    if written > 0 {
                        self.torn.store(true, Ordering::Relaxed);
                    }
                    return Err(errno);
                }
            }
            if written == bytes.len() {
                self.torn.store(false, Ordering::Relaxed);
                return Ok(());
            }
        }
        if written > 0 {
            self.torn.store(true, Ordering::Relaxed);
        }
        Err(Errno::EAGAIN)
    }
}

fn await_writable(to: impl AsFd, timeout_ms: u8) -> Result<(), Errno> {
    let mut descriptors = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut descriptors, PollTimeout::from(timeout_ms)) {
        Ok(0) => Err(Errno::EAGAIN),
        // After an interrupted wait, the write may find no room and fail.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::time::Duration;

    use archipelago_runtime::{Clock, SystemClock};
    use nix::fcntl::OFlag;

    use super::*;

    fn head(text: &str) -> String {
        format!("note: {text}\n")
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_at_once_and_counted_when_somebody_does() {
        // A pipe that blocks: what we are given as stderr is not ours to change.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let output = Output::default();
        let line = format!("{}\n", "x".repeat(999));
        let began = SystemClock.now();
        for _ in 0..1000 {
            output.write(&writer, &line, head);
        }
        let took = SystemClock.now() - began;
        assert!(took < Duration::from_secs(2), "{took:?}");
        let dropped = output.dropped.load(Ordering::Relaxed);
        assert!(dropped > 900, "{dropped}");
        let mut read = vec![0; 256 << 10];
        let mut len = reader.read(&mut read).unwrap();
        output.write(&writer, "after\n", head);
        drop(writer);
        while let Ok(more @ 1..) = reader.read(&mut read[len..]) {
            len += more;
        }
        let text = String::from_utf8(read[..len].to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[lines.len() - 2..],
            [
                format!(
                    "note: {dropped} lines of this log could not be written: {}",
                    Errno::EAGAIN.desc()
                )
                .as_str(),
                "after"
            ]
        );
        assert_eq!(lines.len() as u64, 1000 - dropped + 2);
        assert!(lines[..lines.len() - 2].iter().all(|it| it.len() == 999));
    }

    #[test]
    fn a_reader_that_has_gone_and_a_full_disk_cost_lines_only() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Output::default();
        for _ in 0..10 {
            output.write(&writer, "line\n", head);
            output.write(&full, "line\n", head);
        }
        assert_eq!(output.dropped.load(Ordering::Relaxed), 20);
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert!(output.catch_up(&writer, head));
        assert!(output.catch_up(&writer, head), "once");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            format!(
                "note: 20 lines of this log could not be written: {}\n",
                Errno::ENOSPC.desc()
            )
        );
    }

    #[test]
    fn a_long_line_is_cut() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let output = Output::default();
        output.write(&writer, &format!("{}\n", "ä".repeat(5000)), head);
        output.write(&writer, "next\n", head);
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), LINE_LEN_MAX + "next\n".len());
        assert!(bytes.ends_with(b"\nnext\n"));
    }
}
