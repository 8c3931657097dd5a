//! Another volume of the same pool, in use: it is to be served whatever happens to the others' calls.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::disk::{Disk, QUIET};
use crate::guest::{Guest, Status};
use crate::oracle::Oracle;
use crate::server::{Answer, DEADLINE, Server, wait_for};

/// What a request of the neighbour, and a look at the node, may take: a tenth of it is far more than either ever takes.
pub const NEIGHBOUR_DEADLINE: Duration = Duration::from_secs(20);
/// Its sectors: 256 KiB.
const SECTORS: usize = 512;
/// What it writes again and again.
const WRITTEN: (usize, usize) = (64, 64);
/// Number of the volume in its sectors.
const NUMBER: u64 = 77;

/// The neighbour: a volume of blocks that it owns, in files whose names are durable.
#[derive(Debug)]
pub struct Neighbour {
    guest: Guest,
    oracle: Oracle,
    writes: u64,
}

fn done(answer: Answer) -> Result<String> {
    match answer {
        Answer::Done(text) => Ok(text),
        Answer::Refused(code, text) => bail!("{code}: {text}"),
    }
}

impl Neighbour {
    /// Makes the volume and writes what it will write again. Its calls are nobody's sites.
    ///
    /// # Errors
    /// If anything of that fails.
    pub fn make(server: &Server, disk: &Disk) -> Result<Neighbour> {
        disk.enter(QUIET);
        let size = (SECTORS * 512).to_string();
        let create = ["--json", "volume", "create", "neighbour", "--size", &size];
        let made: serde_json::Value = serde_json::from_str(&done(server.call(&create)?)?)?;
        disk.exempt(made["lineage"].as_str().context("a volume has a lineage")?);
        let socket = done(server.call(&["volume", "attach", "neighbour"])?)?;
        let mut neighbour = Neighbour {
            guest: Guest::connect(&PathBuf::from(socket))?,
            oracle: Oracle::new(NUMBER, SECTORS),
            writes: 0,
        };
        // The first flush goes into the log. After the second its files' names are durable, too: it shares no directory any more.
        neighbour.work()?;
        neighbour.work()?;
        neighbour.guest.timeout = NEIGHBOUR_DEADLINE;
        Ok(neighbour)
    }

    /// The node was started again: works as soon as it is served.
    ///
    /// # Errors
    /// As [`Neighbour::work`], with more time.
    pub fn go_on(&mut self) -> Result<()> {
        self.guest.timeout = DEADLINE;
        let result = self.work();
        self.guest.timeout = NEIGHBOUR_DEADLINE;
        result
    }

    /// Writes to blocks that it owns, reads everything, flushes. An error status is an answer, and excuses what was not flushed.
    ///
    /// # Errors
    /// If there is no answer in time, or a wrong one.
    pub fn work(&mut self) -> Result<()> {
        self.writes += 1;
        let (first, sectors) = WRITTEN;
        let oracle = &mut self.oracle;
        let statuses = [
            self.guest.write(oracle, first, sectors, self.writes)?,
            self.guest.check_all(oracle)?,
            self.guest.flush(oracle)?,
        ];
        if statuses.contains(&Status::Failed) {
            oracle.lose();
        }
        Ok(())
    }
}

/// Sees that the node answers who asks it.
///
/// # Errors
/// If it does not, in time.
pub fn answers(server: &Server) -> Result<()> {
    // A process that has much to do may miss the second that the daemon gives it.
    let mut status = Ok(String::new());
    wait_for("that all processes serve", NEIGHBOUR_DEADLINE, || {
        let asked = server.call_within(&["node", "status"], NEIGHBOUR_DEADLINE);
        status = asked.and_then(done);
        status.is_err()
            || status
                .as_ref()
                .is_ok_and(|text| !text.contains("not serving"))
    })?;
    status?;
    done(server.call_within(&["volume", "list"], NEIGHBOUR_DEADLINE)?)?;
    Ok(())
}
