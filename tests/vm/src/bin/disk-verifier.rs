//! Runs in the guest: keeps places of its disk busy, and knows at any moment what each sector of them must hold.
//!
//!     disk-verifier run STATE SEED PLACE...       until the file STATE/stop is there
//!     disk-verifier digest PLACE...               after that, or after a reboot
//!
//! A PLACE is PATH:OFFSET:LENGTH:WORKERS, a disk or a file. Each worker has a part of it for itself and one request under
//! way, so each read has one right answer: the last write that was acknowledged. A write that was lost, done late, done
//! twice, or put elsewhere is found by the next read of its sectors, and half of all requests go to a few of them.
//!
//! All goes past the guest's caches. `run` says how far it is in STATE/progress, in one line: rounds, in each of which every
//! worker has done a request, and requests. Both print at the end, all flushed, which writes the sectors hold: the same, or
//! something was lost.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what was found")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::load::Random;
use archipelago_crash_tests::pattern::{self, SECTOR};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

/// Sectors of a request at most.
const SECTORS_MAX: u64 = 32;
/// The first sectors of a part, where half of all requests go: soon written again.
const HOT: u64 = 64;
/// What memory is aligned to that the kernel transfers directly.
const ALIGNMENT: usize = 4096;
/// Interval of progress reports.
const TELL: Duration = Duration::from_millis(20);

/// Where a worker works.
#[derive(Debug, Clone)]
struct Part {
    path: String,
    /// Bytes before it.
    offset: u64,
    sectors: u64,
    /// Its number, which its sectors say.
    owner: u64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["run", state, seed, ref places @ ..] => {
            run(Path::new(state), seed.parse()?, &parts(places)?)
        }
        ["digest", ref places @ ..] => digest(&parts(places)?),
        _ => bail!("run STATE SEED PLACE... or digest PLACE..."),
    }
}

fn parts(places: &[&str]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for place in places {
        let words: Vec<&str> = place.split(':').collect();
        let [path, offset, length, workers] = *words.as_slice() else {
            bail!("{place} is not PATH:OFFSET:LENGTH:WORKERS");
        };
        let (offset, length): (u64, u64) = (offset.parse()?, length.parse()?);
        let workers: u64 = workers.parse()?;
        let sectors = length / workers / SECTOR as u64;
        ensure!(
            sectors >= HOT,
            "{place}: a worker has only {sectors} sectors"
        );
        for worker in 0..workers {
            parts.push(Part {
                path: path.to_owned(),
                offset: offset + worker * sectors * SECTOR as u64,
                sectors,
                owner: parts.len() as u64 + 1,
            });
        }
    }
    Ok(parts)
}

fn run(state: &Path, seed: u64, parts: &[Part]) -> Result<()> {
    let done: Vec<AtomicU64> = parts.iter().map(|_| AtomicU64::new(0)).collect();
    let stop = &state.join("stop");
    let ends = std::thread::scope(|scope| {
        let start = |(part, done)| scope.spawn(move || work(part, seed, done, stop));
        let workers: Vec<_> = parts.iter().zip(&done).map(start).collect();
        let mut progress = Progress::new(&done);
        while workers.iter().any(|worker| !worker.is_finished()) {
            progress.report(state)?;
        }
        let ends = workers.into_iter().zip(parts).map(|(worker, part)| {
            let end = worker.join().expect("no worker panics");
            end.with_context(|| format!("{part:?}"))
        });
        ends.collect::<Result<Vec<_>>>()
    })?;
    println!("{:08x}", digest_of(&ends.concat()));
    Ok(())
}

/// How far the workers are.
struct Progress<'a> {
    done: &'a [AtomicU64],
    /// Requests of each when the last round ended.
    before: Vec<u64>,
    rounds: u64,
}

impl<'a> Progress<'a> {
    fn new(done: &'a [AtomicU64]) -> Self {
        Progress {
            done,
            before: vec![0; done.len()],
            rounds: 0,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a pace, for somebody who looks at a file"
    )]
    fn report(&mut self, state: &Path) -> Result<()> {
        let (file, new) = (state.join("progress"), state.join("progress.new"));
        // Relaxed: only counts.
        let counts = self.done.iter().map(|count| count.load(Ordering::Relaxed));
        let now: Vec<u64> = counts.collect();
        if now
            .iter()
            .zip(&self.before)
            .all(|(now, before)| now > before)
        {
            self.rounds += 1;
            self.before.clone_from(&now);
        }
        let requests: u64 = now.iter().sum();
        fs::write(&new, format!("{} {requests}\n", self.rounds))?;
        fs::rename(&new, &file)?;
        std::thread::sleep(TELL);
        Ok(())
    }
}

/// Bytes that the kernel can transfer directly.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0_u8; sectors_len(SECTORS_MAX) + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer { memory, start }
    }

    fn sectors(&mut self, count: u64) -> &mut [u8] {
        &mut self.memory[self.start..self.start + sectors_len(count)]
    }
}

fn sectors_len(count: u64) -> usize {
    usize::try_from(count).expect("a small number") * SECTOR
}

impl Part {
    fn open(&self) -> Result<File> {
        let direct = OFlag::O_DIRECT.bits();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(direct);
        options.open(&self.path).with_context(|| self.path.clone())
    }

    fn at(&self, sector: u64) -> u64 {
        self.offset + sector * SECTOR as u64
    }

    /// What a sector says of its place.
    fn place(&self, sector: u64) -> u64 {
        self.at(sector) / SECTOR as u64
    }

    /// The write that made sector `sector`, which is `bytes`.
    fn holds(&self, sector: u64, bytes: &[u8]) -> Result<u64> {
        pattern::identify(bytes, &[self.owner], self.place(sector))
    }

    /// The writes that made all its sectors.
    fn read_all(&self, file: &File, buffer: &mut Buffer) -> Result<Vec<u64>> {
        let mut writes = Vec::new();
        for first in (0..self.sectors).step_by(usize::try_from(SECTORS_MAX)?) {
            let data = buffer.sectors(SECTORS_MAX.min(self.sectors - first));
            file.read_exact_at(data, self.at(first)).context("read")?;
            for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
                writes.push(self.holds(sector, bytes)?);
            }
        }
        Ok(writes)
    }
}

/// Requests until `stop` is there, then a flush and a look at everything: the writes that the sectors hold. One that fails
/// stops them all.
fn work(part: &Part, seed: u64, done: &AtomicU64, stop: &Path) -> Result<Vec<u64>> {
    let mut worker = Worker {
        part,
        file: part.open()?,
        random: Random::new(seed << 16 | part.owner),
        buffer: Buffer::new(),
        writes: vec![0; usize::try_from(part.sectors)?],
        last_write: 0,
    };
    while !stop.exists() {
        if let Err(error) = worker.step() {
            File::create(stop)?;
            return Err(error);
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    worker.file.sync_all().context("fsync")?;
    let found = part.read_all(&worker.file, &mut worker.buffer)?;
    for (sector, (found, expected)) in found.iter().zip(&worker.writes).enumerate() {
        ensure!(
            found == expected,
            "sector {sector} holds write {found} at the end, not {expected}"
        );
    }
    Ok(found)
}

struct Worker<'a> {
    part: &'a Part,
    file: File,
    random: Random,
    buffer: Buffer,
    /// What each sector must hold.
    writes: Vec<u64>,
    last_write: u64,
}

impl Worker<'_> {
    fn step(&mut self) -> Result<()> {
        let (part, random) = (self.part, &mut self.random);
        let among = if random.below(2) == 0 {
            HOT
        } else {
            part.sectors
        };
        let count = 1 + random.below(SECTORS_MAX);
        let first = random.below(among - count + 1);
        let expected = &mut self.writes[usize::try_from(first)?..usize::try_from(first + count)?];
        let data = self.buffer.sectors(count);
        match random.below(16) {
            0 => self.file.sync_data().context("fdatasync")?,
            1 => {
                let hole =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let (at, len) = (i64::try_from(part.at(first))?, i64::try_from(data.len())?);
                fallocate(&self.file, hole, at, len).context("fallocate")?;
                expected.fill(0);
            }
            2..7 => {
                self.file
                    .read_exact_at(data, part.at(first))
                    .context("read")?;
                for (sector, (bytes, expected)) in (first..).zip(data.chunks(SECTOR).zip(expected))
                {
                    let found = part.holds(sector, bytes)?;
                    ensure!(
                        found == *expected,
                        "sector {sector} holds write {found}, not {expected}"
                    );
                }
            }
            _ => {
                self.last_write += 1;
                for (sector, bytes) in (first..).zip(data.chunks_mut(SECTOR)) {
                    pattern::fill(bytes, part.owner, part.place(sector), self.last_write);
                }
                self.file
                    .write_all_at(data, part.at(first))
                    .context("write")?;
                expected.fill(self.last_write);
            }
        }
        Ok(())
    }
}

fn digest(parts: &[Part]) -> Result<()> {
    let mut writes = Vec::new();
    for part in parts {
        let found = part.read_all(&part.open()?, &mut Buffer::new());
        writes.extend(found.with_context(|| format!("{part:?}"))?);
    }
    println!("{:08x}", digest_of(&writes));
    Ok(())
}

fn digest_of(writes: &[u64]) -> u32 {
    writes.iter().fold(0, |sum, write| {
        crc32c::crc32c_append(sum, &write.to_le_bytes())
    })
}
