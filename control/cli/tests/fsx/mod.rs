//! Random operations on a file, compared with a model of it: what `fsx` of xfstests does, for a file that only grows.
//!
//! Reads and writes through the page cache at any offset, direct ones in sectors, holes, zeroed ranges, growth, fsync, seeks for data
//! and holes, closing and opening again. A failure prints the seed and the last operations.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::unistd::{Whence, lseek64};

/// Longest read, write or range.
const LEN_MAX: u64 = 300_000;
/// The file grows up to so many times its size.
const GROWTH: u64 = 2;
/// Unit of direct I/O.
const SECTOR: u64 = 512;
/// Operations that a failure prints.
const HISTORY: usize = 20;
/// Environment variable that replays a seed.
const SEED: &str = "ARCHIPELAGO_FSX_SEED";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// Memory for direct I/O: the aligned part of a larger piece.
struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
}

impl Aligned {
    fn new(len: u64) -> Aligned {
        let bytes = vec![0; index(len) + 4096];
        let begin = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, begin }
    }

    fn get(&mut self, len: u64) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + index(len)]
    }
}

struct Run<'a> {
    path: &'a Path,
    buffered: File,
    direct: File,
    model: Vec<u8>,
    size_max: u64,
    random: Random,
    memory: Aligned,
    history: VecDeque<String>,
}

/// Does `count` operations on the file at `path`, which has `size` zeros; what it holds then.
pub(crate) fn run(path: &Path, size: u64, count: u64) -> Vec<u8> {
    let seed = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | index(size) as u64);
    println!("seed {seed}: {SEED}={seed} repeats it");
    let (buffered, direct) = open(path);
    let mut run = Run {
        path,
        buffered,
        direct,
        model: vec![0; index(size)],
        size_max: size * GROWTH,
        random: Random(seed),
        memory: Aligned::new(LEN_MAX + SECTOR),
        history: VecDeque::new(),
    };
    for number in 0..count {
        if let Err(what) = run.step() {
            let history = run.history.make_contiguous().join("\n");
            panic!("seed {seed}, operation {number}: {what}; the last ones:\n{history}");
        }
    }
    run.buffered.sync_all().unwrap();
    run.model
}

fn open(path: &Path) -> (File, File) {
    let mut options = OpenOptions::new();
    let buffered = options.read(true).write(true).open(path).unwrap();
    let direct = options.custom_flags(OFlag::O_DIRECT.bits()).open(path);
    (buffered, direct.unwrap())
}

impl Run<'_> {
    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// A range inside the file, of whole units.
    fn range(&mut self, unit: u64) -> (u64, u64) {
        let units = self.size() / unit;
        let offset = self.random.below(units);
        let longest = (units - offset).min(LEN_MAX / unit);
        // Most are short.
        let longest = if self.random.below(4) == 0 {
            longest
        } else {
            longest.min(8192 / unit + 1)
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

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..=24 => self.read(false),
            25..=34 => self.read(true),
            35..=59 => self.write(false),
            60..=72 => self.write(true),
            73..=78 => self.zero(FallocateFlags::FALLOC_FL_PUNCH_HOLE),
            79..=83 => self.zero(FallocateFlags::FALLOC_FL_ZERO_RANGE),
            84..=91 => self.seek(),
            92 => {
                self.note("fsync", 0, 0);
                self.buffered.sync_data().map_err(|error| error.to_string())
            }
            93..=94 => self.grow(),
            95..=96 => {
                self.note("reopen", 0, 0);
                (self.buffered, self.direct) = open(self.path);
                Ok(())
            }
            _ => self.read_all(),
        }
    }

    fn read(&mut self, direct: bool) -> Result<(), String> {
        let (offset, len) = self.range(if direct { SECTOR } else { 1 });
        self.note(if direct { "direct read" } else { "read" }, offset, len);
        let file = if direct { &self.direct } else { &self.buffered };
        let data = self.memory.get(len);
        file.read_exact_at(data, offset)
            .map_err(|error| error.to_string())?;
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

    fn read_all(&mut self) -> Result<(), String> {
        if self.random.below(20) != 0 {
            return Ok(());
        }
        self.note("read all", 0, self.size());
        let data = std::fs::read(self.path).map_err(|error| error.to_string())?;
        match data == self.model {
            true => Ok(()),
            false => Err("the whole differs".to_owned()),
        }
    }

    fn write(&mut self, direct: bool) -> Result<(), String> {
        let (offset, len) = self.range(if direct { SECTOR } else { 1 });
        self.note(if direct { "direct write" } else { "write" }, offset, len);
        let seed = self.random.next();
        let data = self.memory.get(len);
        let mut random = Random(seed);
        for chunk in data.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
        self.model[index(offset)..index(offset + len)].copy_from_slice(data);
        let file = if direct { &self.direct } else { &self.buffered };
        file.write_all_at(data, offset)
            .map_err(|error| error.to_string())
    }

    fn zero(&mut self, how: FallocateFlags) -> Result<(), String> {
        let (offset, len) = self.range(1);
        self.note("zero", offset, len);
        let flags = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (at, count) = (i64::try_from(offset).unwrap(), i64::try_from(len).unwrap());
        fallocate(&self.buffered, flags, at, count).map_err(|errno| errno.to_string())?;
        self.model[index(offset)..index(offset + len)].fill(0);
        Ok(())
    }

    fn grow(&mut self) -> Result<(), String> {
        let size = self.size() + SECTOR * (1 + self.random.below(64));
        if size > self.size_max {
            return Ok(());
        }
        self.note("grow", size, 0);
        let grown = self.buffered.set_len(size);
        grown.map_err(|error| error.to_string())?;
        self.model.resize(index(size), 0);
        Ok(())
    }

    /// Data may be found where zeros were written; a hole never where anything else was.
    fn seek(&mut self) -> Result<(), String> {
        let from = self.random.below(self.size());
        self.note("seek", from, 0);
        let seek = |whence| lseek64(&self.buffered, i64::try_from(from).unwrap(), whence);
        let all_zero = |begin: u64, end: u64| {
            let range = &self.model[index(begin)..index(end)];
            range.iter().all(|byte| *byte == 0)
        };
        let data = match seek(Whence::SeekData) {
            Ok(at) => u64::try_from(at).unwrap(),
            Err(Errno::ENXIO) => self.size(),
            Err(errno) => return Err(errno.to_string()),
        };
        if data < from || data > self.size() || !all_zero(from, data) {
            return Err(format!("data is said to begin at {data}"));
        }
        let hole = seek(Whence::SeekHole).map_err(|errno| errno.to_string())?;
        let hole = u64::try_from(hole).unwrap();
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
