//! Comparisons whose client is fio: over NBD at UNIX sockets, one connection; and of files, with direct I/O.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::compare::{Case, Goals, Sample};
use crate::disk::Op;
use crate::load::{Figures, R1M, RR1, RR32, RW1, RW32, W1M, Workload};
use crate::program::stdout_of;
use crate::server::{Server, usage_of};

/// Share of the measured time for which a server that has just started is warmed up.
const WARM_UP_SHARE: u32 = 5;

/// How fio reaches a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By its engine `nbd`, at a UNIX socket.
    Nbd,
    /// As a file, by io_uring and `O_DIRECT`.
    File,
}

/// The rows, in order.
pub const CASES: [Case; 6] = [
    Case::filled(RR1),
    Case::filled(RR32),
    Case::filled(RW1),
    Case::filled(RW32),
    Case::filled(R1M),
    Case::filled(W1M),
];

impl Way {
    /// What is promised beside the peer: qemu-nbd, or the FUSE export of qemu-storage-daemon.
    #[must_use]
    pub fn goals(self, case: &Case) -> Goals {
        let (rate_min, cpu_max) = match (self, case.workload.name) {
            (Way::Nbd, "rr32" | "rw32") => (Some(1.2), Some(0.8)),
            (Way::Nbd, "rr1" | "rw1") => (Some(1.0), None),
            _ => (None, None),
        };
        Goals { rate_min, cpu_max }
    }

    /// Measures `case` for `time`.
    ///
    /// # Errors
    /// If the server fails, or there is no fio with this engine.
    pub fn measure(
        self,
        server: &mut dyn Server,
        case: Case,
        time: Duration,
        seed: u64,
    ) -> Result<Sample> {
        let place = server.filled()?;
        let pids = server.pids()?;
        let load = |time, seed| {
            let mut fio = self.command(&place, case.workload, time, seed);
            figures(&stdout_of(&mut fio)?)
        };
        // Other places than those that are measured; fio reads signed numbers.
        load(time / WARM_UP_SHARE, !seed >> 1)?;
        let before = usage_of(&pids)?;
        let figures = load(time, seed)?;
        let after = usage_of(&pids)?;
        server.release()?;
        Ok(Sample::new(figures, &before, &after))
    }

    fn command(self, place: &Path, workload: Workload, time: Duration, seed: u64) -> Command {
        let mut fio = command(workload, time, seed);
        match self {
            Way::Nbd => fio.args([
                "--ioengine=nbd".to_owned(),
                format!("--uri=nbd+unix:///?socket={}", place.display()),
            ]),
            Way::File => fio.args([
                "--ioengine=io_uring".to_owned(),
                "--direct=1".to_owned(),
                "--allow_file_create=0".to_owned(),
                format!("--filename={}", place.display()),
            ]),
        };
        fio
    }
}

/// fio with `workload` for `time`, whose report [`figures`] reads; the engine and what it needs are missing.
#[must_use]
pub fn command(workload: Workload, time: Duration, seed: u64) -> Command {
    let pattern = match (workload.op, workload.random) {
        (Op::Write, true) => "randwrite",
        (Op::Write, false) => "write",
        (_, true) => "randread",
        (_, false) => "read",
    };
    let mut fio = Command::new("fio");
    fio.args(["--name=load", "--time_based", "--thread"]);
    // Places are independent of each other: a map of those that were used is no part of the figures.
    fio.args(["--norandommap=1", "--output-format=json", "--eta=never"]);
    fio.arg(format!("--rw={pattern}"));
    fio.arg(format!("--bs={}", workload.len));
    fio.arg(format!("--iodepth={}", workload.depth));
    fio.arg(format!("--runtime={}ms", time.as_millis()));
    fio.arg(format!("--randseed={seed}"));
    if workload.flush {
        fio.arg("--fsync=1");
    }
    fio
}

/// The figures in fio's report.
///
/// # Errors
/// If the text is none, or nothing was done.
pub fn figures(text: &str) -> Result<Figures> {
    // Lines of libraries may stand before.
    let begin = text.find('{').context("fio prints no JSON")?;
    let report: serde_json::Value = serde_json::from_str(text.get(begin..).unwrap_or_default())?;
    let job = &report["jobs"][0];
    let side = match job["read"]["total_ios"].as_u64() {
        Some(1..) => &job["read"],
        _ => &job["write"],
    };
    let latency = |percentile: &str| {
        let ns = side["clat_ns"]["percentile"][percentile].as_f64();
        Some(ns? / 1000.0)
    };
    let found = || {
        Some(Figures {
            iops: side["iops"].as_f64()?,
            p50_us: latency("50.000000")?,
            p99_us: latency("99.000000")?,
            p999_us: latency("99.900000")?,
            requests: side["total_ios"].as_u64()?,
        })
    };
    found().with_context(|| format!("fio prints no figures: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_side_that_did_something() {
        let percentile =
            r#""percentile": {"50.000000": 1500, "99.000000": 9000, "99.900000": 9500}"#;
        let text = format!(
            "a line\n{{\"jobs\": [{{\"read\": {{\"total_ios\": 0, \"iops\": 0}}, \
             \"write\": {{\"total_ios\": 7, \"iops\": 3.5, \"clat_ns\": {{{percentile}}}}}}}]}}"
        );
        let expected = Figures {
            iops: 3.5,
            p50_us: 1.5,
            p99_us: 9.0,
            p999_us: 9.5,
            requests: 7,
        };
        assert_eq!(figures(&text).unwrap(), expected);
        assert!(figures("{}").is_err() && figures("fio: no engine").is_err());
    }
}
