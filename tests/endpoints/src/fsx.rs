//! Random operations on a disk, compared with a model of it: what `fsx` of xfstests does, for whatever a client speaks.
//!
//! Reads and writes in the units of the way and in sectors, durable ones, zeros, discards, flushes, growth, looks for data and holes,
//! connecting anew. A failure prints the seed and the last operations.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Result;

use crate::disk::{Disk, Durable, Space};

/// Longest read, write or range.
const LEN_MAX: u64 = 300_000;
/// The disk grows up to so many times its size.
const GROWTH: u64 = 2;
const SECTOR: u64 = 512;
/// Operations that a failure prints.
const HISTORY: usize = 20;
/// Environment variable that replays a seed.
const SEED: &str = "ENDPOINT_SEED";
/// Environment variable with the number of operations.
const OPERATIONS: &str = "ENDPOINT_OPERATIONS";
/// Operations unless it says otherwise.
const OPERATIONS_DEFAULT: u64 = 20_000;

/// Numbers from a seed: SplitMix64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn fill(&mut self, data: &mut [u8]) {
        for chunk in data.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Bytes that no two places share.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    Random(seed).fill(&mut data);
    data
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a disk in memory")
}

/// How a run is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Of everything random.
    pub seed: u64,
    /// How many.
    pub operations: u64,
}

impl Plan {
    /// As the environment says: `ENDPOINT_SEED`, else a new one, and `ENDPOINT_OPERATIONS`, else 20,000.
    #[must_use]
    pub fn from_environment() -> Plan {
        let number = |name: &str| std::env::var(name).ok()?.parse().ok();
        let new = || RandomState::new().hash_one(());
        Plan {
            seed: number(SEED).unwrap_or_else(new),
            operations: number(OPERATIONS).unwrap_or(OPERATIONS_DEFAULT),
        }
    }
}

impl fmt::Display for Plan {
    /// What repeats it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, operations } = self;
        write!(f, "{SEED}={seed} {OPERATIONS}={operations}")
    }
}

struct Run<'a> {
    disk: &'a mut dyn Disk,
    model: Vec<u8>,
    size_max: u64,
    random: Random,
    data: Vec<u8>,
    history: VecDeque<String>,
}

/// Does what `plan` says on `disk`, which has `size` zeros; what it holds then, durably.
///
/// # Errors
/// Never: a difference is a panic.
///
/// # Panics
/// With the seed and the last operations, when the disk is not as the model.
pub fn run(disk: &mut dyn Disk, size: u64, plan: Plan) -> Result<Vec<u8>> {
    let Plan { seed, operations } = plan;
    let mut run = Run {
        disk,
        model: vec![0; index(size)],
        size_max: size * GROWTH,
        random: Random(seed),
        data: vec![0; index(LEN_MAX + SECTOR)],
        history: VecDeque::new(),
    };
    for number in 0..operations {
        if let Err(what) = run.step() {
            let history = run.history.make_contiguous().join("\n");
            panic!("{plan}, operation {number}: {what}; the last ones:\n{history}");
        }
    }
    run.disk.flush()?;
    Ok(run.model)
}

type Step = std::result::Result<(), String>;

fn said(error: std::io::Error) -> String {
    error.to_string()
}

impl Run<'_> {
    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// A range inside the disk, of whole units.
    fn range(&mut self, unit: u64) -> (u64, u64) {
        let units = self.size() / unit;
        let offset = self.random.below(units);
        let longest = (units - offset).min(LEN_MAX / unit);
        // Most are short.
        let longest = match self.random.below(4) {
            0 => longest,
            _ => longest.min(8192 / unit + 1),
        };
        let len = 1 + self.random.below(longest);
        (offset * unit, len * unit)
    }

    fn note(&mut self, what: &str, offset: u64, len: u64) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(format!("{what} {offset} +{len}"));
    }

    fn step(&mut self) -> Step {
        let unit = self.disk.unit();
        match self.random.below(1000) {
            0..=249 => self.read(unit),
            250..=349 => self.read(SECTOR),
            350..=589 => self.write(unit, Durable::Later),
            590..=719 => self.write(SECTOR, Durable::Later),
            720..=723 => self.write(SECTOR, Durable::Now),
            724..=783 => self.zero("released zeros", |disk, offset, len| {
                disk.zero(offset, len, Space::Released)
            }),
            784..=823 => self.zero("kept zeros", |disk, offset, len| {
                disk.zero(offset, len, Space::Kept)
            }),
            824..=853 => self.zero("discard", |disk, offset, len| disk.discard(offset, len)),
            854..=933 => self.look(),
            934..=943 => {
                self.note("flush", 0, 0);
                self.disk.flush().map_err(said)
            }
            944..=963 => self.grow(),
            964..=967 => self.connect(),
            968..=972 => self.read_all(),
            _ => self.read(SECTOR),
        }
    }

    fn check(&mut self, offset: u64, len: u64) -> Step {
        let data = &mut self.data[..index(len)];
        self.disk.read(offset, data).map_err(said)?;
        let expected = &self.model[index(offset)..index(offset + len)];
        match data.iter().zip(expected).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {} is {}, not {}",
                offset + at as u64,
                data[at],
                expected[at]
            )),
        }
    }

    fn read(&mut self, unit: u64) -> Step {
        let (offset, len) = self.range(unit);
        self.note("read", offset, len);
        self.check(offset, len)
    }

    fn read_all(&mut self) -> Step {
        self.note("read all", 0, self.size());
        let mut offset = 0;
        while offset < self.size() {
            let len = (self.size() - offset).min(LEN_MAX / SECTOR * SECTOR);
            self.check(offset, len)?;
            offset += len;
        }
        Ok(())
    }

    fn write(&mut self, unit: u64, durable: Durable) -> Step {
        let (offset, len) = self.range(unit);
        self.note(
            match durable {
                Durable::Later => "write",
                Durable::Now => "durable write",
            },
            offset,
            len,
        );
        let data = &mut self.data[..index(len)];
        self.random.fill(data);
        self.model[index(offset)..index(offset + len)].copy_from_slice(data);
        self.disk.write(offset, data, durable).map_err(said)
    }

    fn zero(&mut self, what: &str, zero: fn(&mut dyn Disk, u64, u64) -> Result<()>) -> Step {
        let (offset, len) = self.range(self.disk.unit());
        self.note(what, offset, len);
        zero(self.disk, offset, len).map_err(said)?;
        self.model[index(offset)..index(offset + len)].fill(0);
        Ok(())
    }

    fn grow(&mut self) -> Step {
        let size = self.size() + SECTOR * (1 + self.random.below(64));
        if size > self.size_max {
            return Ok(());
        }
        self.note("grow", size, 0);
        if self.disk.grow(size).map_err(said)? {
            self.model.resize(index(size), 0);
        }
        Ok(())
    }

    fn connect(&mut self) -> Step {
        self.note("connect", 0, 0);
        let size = self.disk.size().map_err(said)?;
        match size == self.size() {
            true => Ok(()),
            false => Err(format!("it has {size} bytes, not {}", self.size())),
        }
    }

    /// Data may be found where zeros were written; a hole never where anything else was.
    fn look(&mut self) -> Step {
        let from = self.random.below(self.size());
        self.note("look", from, 0);
        let Some(found) = self.disk.run_at(from).map_err(said)? else {
            return Ok(());
        };
        let all_zero = |begin: u64, end: u64| {
            let range = &self.model[index(begin)..index(end)];
            range.iter().all(|byte| *byte == 0)
        };
        let (data, hole) = (found.data, found.hole);
        if data < from || data > self.size() || !all_zero(from, data) {
            return Err(format!("data is said to begin at {data}"));
        }
        let rest = (hole / SECTOR + 1) * SECTOR;
        if hole < from || hole > self.size() || !all_zero(hole, rest.min(self.size())) {
            return Err(format!("a hole is said to begin at {hole}"));
        }
        match hole == from && data == from && from < self.size() {
            true => Err("both data and a hole".to_owned()),
            false => Ok(()),
        }
    }
}
