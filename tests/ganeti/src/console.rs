//! A guest's serial console, on the socket where Ganeti lets QEMU serve it. The guest answers each command with its exit code; its
//! side is `tests/vm/guest/init.sh`.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::waiting::{now, wait_until};
use archipelago_vm_tests::deadline::{BOOT, COMMAND};

/// Writes noise to MiB 8 of the first disk: its sum.
pub const WRITE: &str = "head -c 1048576 /dev/urandom >/tmp/noise && \
     dd if=/tmp/noise of=/dev/vda bs=1M seek=8 oflag=direct conv=notrunc 2>/dev/null && md5sum </tmp/noise | cut -d' ' -f1";
/// The sum of the same place, read from the disk.
pub const READ: &str = "sum_of /dev/vda 16384 2048";
/// Between two questions to a guest that may not be there yet.
const PROBE: Duration = Duration::from_millis(500);
/// What a failure shows of the console.
const TAIL_LEN: usize = 2000;

/// A connection to a guest that takes commands.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    said: String,
    id: u64,
}

impl Console {
    /// Connects to the console at `socket` and waits until the guest answers.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn connect(socket: &Path) -> Result<Console> {
        let missing = || format!("nobody serves {}", socket.display());
        let stream = wait_until(BOOT, missing, || Ok(UnixStream::connect(socket).ok()))?;
        stream.set_read_timeout(Some(PROBE))?;
        let mut console = Console {
            stream,
            said: String::new(),
            id: 0,
        };
        let deadline = now() + BOOT;
        // What it said before somebody listened is lost.
        while !console.said.contains("GUEST-EXIT 0 0\n") {
            ensure!(now() < deadline, "no boot: {}", console.tail());
            console.stream.write_all(b"\n0 true\n").context("console")?;
            console.read()?;
        }
        Ok(console)
    }

    /// Runs a command in the guest: what it printed.
    ///
    /// # Errors
    /// If it fails there, or does not end.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.id += 1;
        // A line that has come in part belongs to an earlier question.
        let begin = self.said.rfind('\n').map_or(0, |end| end + 1);
        let line = format!("{} {command}\n", self.id);
        self.stream.write_all(line.as_bytes()).context("console")?;
        let answer = format!("GUEST-EXIT {} ", self.id);
        let deadline = now() + COMMAND;
        loop {
            let said = &self.said[begin..];
            let answered = said
                .split_once(&answer)
                .and_then(|(printed, rest)| Some((printed, rest.split_once('\n')?.0)));
            if let Some((printed, code)) = answered {
                let printed = without_probes(printed);
                ensure!(code == "0", "in the guest: {command}: {code}: {printed}");
                return Ok(printed);
            }
            ensure!(now() < deadline, "no answer to {command}: {}", self.tail());
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the machine has ended: {}", self.tail()),
            Ok(len) => self.said.push_str(&String::from_utf8_lossy(&bytes[..len])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("console"),
        }
        Ok(())
    }

    fn tail(&self) -> &str {
        let start = self.said.len().saturating_sub(TAIL_LEN);
        self.said.get(start..).unwrap_or(&self.said)
    }
}

/// Answers to early questions may come late.
fn without_probes(printed: &str) -> String {
    let lines = printed.lines().filter(|line| !is_probe(line));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

fn is_probe(line: &str) -> bool {
    line.starts_with("GUEST-EXIT 0 ") || line.starts_with("GUEST-EXIT  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_answers_to_probes_are_no_part_of_an_answer() {
        assert_eq!(
            without_probes("GUEST-EXIT 0 0\nGUEST-EXIT  0\nseven\n"),
            "seven"
        );
    }
}
