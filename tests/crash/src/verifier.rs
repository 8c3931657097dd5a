//! Random requests over vhost-user, checked against the model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::{Disk, Done, Op};
use archipelago_bench::load::Random;

use crate::model::{Model, Window};
use crate::pattern::SECTOR;

/// Requests in flight.
pub const DEPTH: usize = 16;
/// Longest wait for a completion: a restart of everything fits in.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sectors of the longest request: 1 MiB.
const SECTORS_MAX: usize = 2048;

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Pending {
    op: Op,
    first: usize,
    sectors: usize,
    write: u64,
}

impl Pending {
    fn overlaps(&self, first: usize, sectors: usize) -> bool {
        self.op != Op::Flush && first < self.first + self.sectors && self.first < first + sectors
    }
}

/// A volume under random load.
#[derive(Debug)]
pub struct Verifier {
    socket: PathBuf,
    disk: Disk,
    model: Model,
    random: Random,
    pending: [Option<Pending>; DEPTH],
    last_write: u64,
    window: Option<Window>,
    buffer: Vec<u8>,
    /// Requests done so far.
    pub done: u64,
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn connect(socket: &Path) -> Result<Disk> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Disk::connect(socket, DEPTH, SECTORS_MAX * SECTOR) {
            Ok(disk) => return Ok(disk),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!(
                    "no server at {} after {PATIENCE:?}",
                    socket.display()
                )));
            }
            Err(_not_yet) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Verifier {
    /// Connects to a volume that holds what `model` says.
    ///
    /// # Errors
    /// If there is no server, or the volume has another size.
    pub fn connect(socket: &Path, model: Model, seed: u64) -> Result<Self> {
        let disk = connect(socket)?;
        ensure!(
            disk.capacity() == (model.sectors() * SECTOR) as u64,
            "the disk has {} bytes, the model {} sectors",
            disk.capacity(),
            model.sectors()
        );
        Ok(Verifier {
            socket: socket.to_path_buf(),
            disk,
            last_write: seed << 32,
            model,
            random: Random::new(seed),
            pending: [None; DEPTH],
            window: None,
            buffer: vec![0; SECTORS_MAX * SECTOR],
            done: 0,
        })
    }

    /// Keeps the disk busy until `requests` more are done; what is then in flight stays in flight.
    ///
    /// # Errors
    /// If a request fails, takes too long, or reads what it must not.
    pub fn run(&mut self, requests: u64) -> Result<()> {
        let end = self.done + requests;
        while self.done < end {
            self.top_up()?;
            self.reap()?;
        }
        self.top_up()
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// As [`Verifier::run`].
    pub fn drain(&mut self) -> Result<()> {
        while self.pending.iter().any(Option::is_some) {
            self.reap()?;
        }
        Ok(())
    }

    /// Drains, then flushes.
    ///
    /// # Errors
    /// As [`Verifier::run`].
    pub fn flush(&mut self) -> Result<()> {
        self.drain()?;
        self.disk.run(Op::Flush, 0, 0, PATIENCE)
    }

    /// Reads and checks the whole volume.
    ///
    /// # Errors
    /// As [`Verifier::run`].
    pub fn check_all(&mut self) -> Result<()> {
        self.drain()?;
        let mut data = std::mem::take(&mut self.buffer);
        for first in (0..self.model.sectors()).step_by(SECTORS_MAX) {
            let len = SECTORS_MAX.min(self.model.sectors() - first) * SECTOR;
            self.read(first, &mut data[..len])?;
            self.model.check(&data[..len], first)?;
        }
        self.buffer = data;
        Ok(())
    }

    /// The server was killed and comes back: connects again and sends what was in flight again.
    ///
    /// # Errors
    /// If no server comes back.
    pub fn reconnect(&mut self) -> Result<()> {
        self.disk = connect(&self.socket)?;
        for slot in 0..DEPTH {
            if let Some(pending) = self.pending[slot] {
                self.send(slot, pending)?;
            }
        }
        self.disk.kick()
    }

    /// What the volume holds now; nothing may be in flight.
    ///
    /// # Errors
    /// As [`Verifier::drain`].
    pub fn settled_model(&mut self) -> Result<Model> {
        self.drain()?;
        Ok(self.model.clone())
    }

    /// A snapshot is about to be asked for.
    pub fn open_window(&mut self) {
        let mut window = Window::open(&self.model);
        for pending in self
            .pending
            .iter()
            .flatten()
            .filter(|pending| changes(pending.op))
        {
            window.note(pending.first, pending.sectors, pending.write);
        }
        self.window = Some(window);
    }

    /// The snapshot is there: what it may hold.
    ///
    /// # Errors
    /// If no window was open.
    pub fn close_window(&mut self) -> Result<Window> {
        self.window.take().context("no window is open")
    }

    /// Reads at sector `first`; nothing may be in flight.
    ///
    /// # Errors
    /// If the read fails.
    pub fn read(&mut self, first: usize, data: &mut [u8]) -> Result<()> {
        self.disk
            .run(Op::Read, (first * SECTOR) as u64, data.len(), PATIENCE)?;
        self.disk.take(0, data)
    }

    fn top_up(&mut self) -> Result<()> {
        for slot in 0..DEPTH {
            if self.pending[slot].is_some() {
                continue;
            }
            let Some(pending) = self.invent() else {
                continue;
            };
            self.send(slot, pending)?;
            self.pending[slot] = Some(pending);
            if let Some(window) = self.window.as_mut().filter(|_| changes(pending.op)) {
                window.note(pending.first, pending.sectors, pending.write);
            }
        }
        self.disk.kick()
    }

    /// A random request that overlaps none in flight; `None` if the dice fell badly.
    fn invent(&mut self) -> Option<Pending> {
        let total = self.model.sectors() as u64;
        let sectors = match self.random.below(8) {
            0 => 1 + self.random.below(7),
            1 => SECTORS_MAX as u64,
            2 => 8 * (1 + self.random.below(32)),
            _ => 8,
        }
        .min(total);
        let mut first = self.random.below(total - sectors + 1);
        if self.random.below(4) > 0 {
            first = first / 8 * 8;
        }
        let op = match self.random.below(20) {
            0..=5 => Op::Read,
            6 => Op::Flush,
            7 => Op::Discard,
            8 => Op::WriteZeroes {
                unmap: self.random.below(2) == 0,
            },
            _ => Op::Write,
        };
        let (first, sectors) = (usize::try_from(first).ok()?, usize::try_from(sectors).ok()?);
        if self
            .pending
            .iter()
            .flatten()
            .any(|pending| pending.overlaps(first, sectors))
        {
            return None;
        }
        let write = match op {
            Op::Write => {
                self.last_write += 1;
                self.last_write
            }
            _ => 0,
        };
        Some(Pending {
            op,
            first,
            sectors,
            write,
        })
    }

    fn send(&mut self, slot: usize, pending: Pending) -> Result<()> {
        let len = pending.sectors * SECTOR;
        if pending.op == Op::Write {
            self.model
                .fill(&mut self.buffer[..len], pending.first, pending.write);
            self.disk.fill(slot, &self.buffer[..len])?;
        }
        self.disk
            .submit(slot, pending.op, (pending.first * SECTOR) as u64, len)
    }

    fn reap(&mut self) -> Result<()> {
        let mut any = false;
        while let Some(Done { slot, result }) = self.disk.next_done() {
            any = true;
            let Some(pending) = self.pending[slot].take() else {
                bail!("slot {slot} completed twice")
            };
            ensure!(result == 0, "{pending:?} failed with {result}");
            match pending.op {
                Op::Read => {
                    let data = &mut self.buffer[..pending.sectors * SECTOR];
                    self.disk.take(slot, data)?;
                    self.model
                        .check(data, pending.first)
                        .with_context(|| format!("{pending:?}"))?;
                }
                Op::Flush => {}
                Op::Write | Op::Discard | Op::WriteZeroes { .. } => {
                    self.model
                        .note(pending.first, pending.sectors, pending.write);
                }
            }
            self.done += 1;
        }
        if !any {
            self.disk.wait(PATIENCE)?;
        }
        Ok(())
    }
}

fn changes(op: Op) -> bool {
    matches!(op, Op::Write | Op::Discard | Op::WriteZeroes { .. })
}
