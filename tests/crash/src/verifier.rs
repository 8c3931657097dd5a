//! Random requests over vhost-user, checked against the model.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::{Done, Op};
use archipelago_bench::load::Random;
use archipelago_bench::waiting::now;

use crate::disk::{Disk, InFlight, Waited};
use crate::model::{Model, Window};
use crate::pattern::SECTOR;
use crate::witness::Witness;

/// Between two looks for requests that are not done.
const LOOK: Duration = Duration::from_secs(1);

/// What load a verifier makes.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests in flight.
    pub depth: usize,
    /// Sectors of the longest request.
    pub sectors_max: usize,
    /// What its front end keeps over the death of a server.
    pub in_flight: InFlight,
    /// Longest wait for a completion.
    pub timeout: Duration,
    /// Rests after each step of a [`LoadedVolumes`](crate::loaded_volumes::LoadedVolumes): for volumes that are in use, but not busy.
    pub rest: Duration,
}

impl Default for Load {
    /// 16 requests of up to 1 MiB; a restart of everything fits into the timeout.
    fn default() -> Self {
        Load {
            depth: 16,
            sectors_max: 2048,
            in_flight: InFlight::Tracked,
            timeout: Duration::from_secs(60),
            rest: Duration::ZERO,
        }
    }
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Pending {
    op: Op,
    first: usize,
    sectors: usize,
    write: u64,
    since: Instant,
}

impl Pending {
    fn overlaps(&self, first: usize, sectors: usize) -> bool {
        self.op != Op::Flush && first < self.first + self.sectors && self.first < first + sectors
    }
}

/// A volume under random load.
#[derive(Debug)]
pub struct Verifier {
    disk: Disk,
    load: Load,
    model: Model,
    random: Random,
    pending: Vec<Option<Pending>>,
    last_write: u64,
    window: Option<Window>,
    buffer: Vec<u8>,
    witness: Option<Arc<Witness>>,
    /// Requests done so far.
    pub done: u64,
    /// Servers that were met after the first one.
    pub successors: u64,
}

impl Verifier {
    /// The load that it makes.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load
    }

    /// Connects to a volume that holds what `model` says.
    ///
    /// # Errors
    /// If there is no server, or the volume has another size.
    pub fn connect(socket: &Path, model: Model, seed: u64) -> Result<Self> {
        Verifier::with_load(socket, model, seed, Load::default())
    }

    /// The same with another load.
    ///
    /// # Errors
    /// As [`Verifier::connect`].
    pub fn with_load(socket: &Path, model: Model, seed: u64, load: Load) -> Result<Self> {
        let buffer_len = load.sectors_max * SECTOR;
        let disk = Disk::connect(socket, load.depth, buffer_len, load.in_flight, load.timeout)?;
        ensure!(
            disk.capacity() == (model.sectors() * SECTOR) as u64,
            "the disk has {} bytes, the model {} sectors",
            disk.capacity(),
            model.sectors()
        );
        Ok(Verifier {
            disk,
            load,
            last_write: seed << 32,
            model,
            random: Random::new(seed),
            pending: vec![None; load.depth],
            window: None,
            buffer: vec![0; buffer_len],
            witness: None,
            done: 0,
            successors: 0,
        })
    }

    /// Keeps the disk busy until `requests` more are done; what is then in flight stays in flight.
    ///
    /// # Errors
    /// If a request fails, takes too long, or reads what it must not.
    pub fn run(&mut self, requests: u64) -> Result<()> {
        let end = self.done + requests;
        while self.done < end {
            self.step()?;
        }
        self.top_up()
    }

    /// Tops the requests in flight up and takes what is done: how many, at least one unless the server died.
    ///
    /// # Errors
    /// As [`Verifier::run`].
    pub fn step(&mut self) -> Result<u64> {
        self.top_up()?;
        self.reap()
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
        self.disk.run(Op::Flush, 0, 0, self.load.timeout)
    }

    /// Reads and checks the whole volume.
    ///
    /// # Errors
    /// As [`Verifier::run`].
    pub fn check_all(&mut self) -> Result<()> {
        self.drain()?;
        let mut data = std::mem::take(&mut self.buffer);
        for first in (0..self.model.sectors()).step_by(self.load.sectors_max) {
            let len = self.load.sectors_max.min(self.model.sectors() - first) * SECTOR;
            self.read(first, &mut data[..len])?;
            self.model.check(&data[..len], first)?;
        }
        self.buffer = data;
        Ok(())
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
        self.disk.run(
            Op::Read,
            (first * SECTOR) as u64,
            data.len(),
            self.load.timeout,
        )?;
        self.disk.take(0, data)
    }

    fn top_up(&mut self) -> Result<()> {
        for slot in 0..self.load.depth {
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
            1 => self.load.sectors_max as u64,
            2 => 8 * (1 + self.random.below(32)),
            _ => 8,
        }
        .min(total)
        .min(self.load.sectors_max as u64);
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
            since: now(),
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

    /// The same beside `witness`: a request may take as much longer as the machine has made a plain writer wait.
    #[must_use]
    pub fn beside(mut self, witness: Arc<Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// How long a request or a reconnection may take.
    fn timeout(&self) -> Duration {
        let stall = self.witness.as_ref().map(|witness| witness.stall());
        self.load.timeout + stall.unwrap_or_default()
    }

    /// Finds a request that is not done.
    fn miss_none(&self) -> Result<()> {
        let timeout = self.timeout();
        let lost = |pending: &&Pending| pending.since.elapsed() > timeout;
        match self.pending.iter().flatten().find(lost) {
            Some(pending) => bail!("not done within {timeout:?}: {pending:?}"),
            None => Ok(()),
        }
    }

    fn reap(&mut self) -> Result<u64> {
        let before = self.done;
        while let Some(Done { slot, result }) = self.disk.next_done()? {
            let Some(pending) = self.pending.get_mut(slot).and_then(Option::take) else {
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
        self.miss_none()?;
        if self.done == before && self.disk.wait(LOOK)? == Waited::Disconnected {
            self.disk.reconnect(self.timeout())?;
            self.successors += 1;
        }
        Ok(self.done - before)
    }
}

fn changes(op: Op) -> bool {
    matches!(op, Op::Write | Op::Discard | Op::WriteZeroes { .. })
}
