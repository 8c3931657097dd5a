//! The pool at each point of a recording, with the power cut there.
//!
//! Invariants
//! - A point is a completed sync, durable write or swap, or a guest's report, from the first report on.
//! - The image of a point depends on the recording, the seed and the point's number: nothing before it is carried over
//!   but the simulated pool itself.
//! - What a guest never wrote to reads as zeros: looked at now and then, since that reads everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail, ensure};
use archipelago_blocker::Backend;
use archipelago_blocker::recording::Recorded;
use archipelago_blocker::simulated::{Random, SimulatedBackend};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::ids::{BLOCK_SIZE, Lineage, Name};
use archipelago_protocol::object::{FLAG_DURABLE, IO_LEN_MAX, ObjectKind, ObjectOp, ObjectRequest};
use archipelago_protocol::volume::OpenMode;
use archipelago_simulation::machine::{CrashPoint, Link, Machine};
use archipelago_simulation::memory::MemoryPool;
use archipelago_simulation::trouble::Trouble;
use archipelago_simulation::volume::Volume;
use xseg::Region;

use crate::judge::Promise;
use crate::medium::{FileSystem, Medium};
use crate::plan::Plan;
use crate::record::{VOLUME, report_offset};
use crate::report;

/// Bytes of a read at most.
const READ_LEN: u64 = 256 << 10;
/// One of so many points is read whole.
const WHOLE_OF: u64 = 200;

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Completed syncs, durable writes and swaps.
    pub marks: u64,
    /// Reports: what was promised must be there at once.
    pub reports: u64,
    /// Bytes that the guest had written to in the end.
    pub bytes: u64,
}

impl Figures {
    /// Points so far.
    #[must_use]
    pub fn points(&self) -> u64 {
        self.marks + self.reports
    }
}

/// A failed point.
#[derive(Debug)]
pub struct Failure {
    /// Its number.
    pub point: u64,
    /// What is wrong.
    pub error: anyhow::Error,
}

/// A recording, as far as it was read.
#[derive(Debug)]
pub struct Replay {
    kind: FileSystem,
    seed: u64,
    medium: Medium,
    memory: MemoryPool,
    region: Region,
    backend: SimulatedBackend,
    /// Requests in flight, in the order in which they were started, as the backend has them.
    in_flight: Vec<(u64, ObjectRequest)>,
    /// Blocks below the report that the guest ever wrote to.
    written: BTreeSet<u64>,
    /// After the last report, and one step on. `None`: there is none yet.
    plans: Option<(Plan, Plan)>,
    figures: Figures,
}

fn makes_durable(request: &ObjectRequest) -> bool {
    match request.op {
        ObjectOp::Sync | ObjectOp::SyncPool | ObjectOp::CompareAndSwap => true,
        ObjectOp::Write => request.flags & FLAG_DURABLE != 0,
        _ => false,
    }
}

impl Replay {
    /// Of a recording that was made with `kind` and `seed`.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(kind: FileSystem, seed: u64) -> Result<Self> {
        Ok(Replay {
            kind,
            seed,
            medium: Medium::new(kind)?,
            memory: MemoryPool::default(),
            region: Region::anonymous(IO_LEN_MAX as usize)?,
            backend: SimulatedBackend::new(seed),
            in_flight: Vec::new(),
            written: BTreeSet::new(),
            plans: None,
            figures: Figures::default(),
        })
    }

    /// Reads `recording` and looks at every point, or at one only.
    ///
    /// # Errors
    /// The first point that breaks a promise, or what is wrong with the recording.
    pub fn run(mut self, recording: &mut impl Read, only: Option<u64>) -> Result<Figures, Failure> {
        loop {
            match self.advance(recording, only) {
                Ok(true) => {}
                Ok(false) => return Ok(self.figures),
                Err(error) => {
                    let point = self.figures.points();
                    return Err(Failure { point, error });
                }
            }
        }
    }

    fn advance(&mut self, recording: &mut impl Read, only: Option<u64>) -> Result<bool> {
        let Some(entry) = Recorded::read(recording)? else {
            return Ok(false);
        };
        let is_point = match entry {
            Recorded::Started {
                ticket,
                request,
                data,
            } => self.start(ticket, &request, &data)?,
            Recorded::Answered { ticket, done } => self.answer(ticket, done)?,
        };
        if is_point && only.is_none_or(|only| only == self.figures.points()) {
            self.look()?;
        }
        Ok(true)
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, data: &[u8]) -> Result<bool> {
        let span = self.region.span(0, data.len() as u64)?;
        self.region.write(0, data)?;
        let spans = if data.is_empty() {
            &[][..]
        } else {
            std::slice::from_ref(&span)
        };
        self.backend.start(ticket, request, spans);
        self.in_flight.push((ticket, *request));
        if request.op != ObjectOp::Write || request.id.kind != ObjectKind::Data {
            return Ok(false);
        }
        let end = request.offset + u64::from(request.len);
        self.written
            .extend(request.offset / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE));
        self.figures.bytes = self.written.len() as u64 * BLOCK_SIZE;
        if request.offset != report_offset(self.kind) {
            return Ok(false);
        }
        let number = report::number(data).context("something else where reports belong")?;
        let (mut before, mut after) = self
            .plans
            .take()
            .unwrap_or_else(|| (Plan::new(self.seed), Plan::new(self.seed)));
        while before.number() < number {
            before.advance();
        }
        while after.number() < number {
            after.advance();
        }
        self.plans = Some((before, after));
        self.figures.reports += 1;
        Ok(true)
    }

    fn answer(&mut self, ticket: u64, done: bool) -> Result<bool> {
        let mut flights = self.in_flight.iter();
        let index = flights
            .position(|(known, _)| *known == ticket)
            .context("an answer to nothing")?;
        let (_, request) = self.in_flight.remove(index);
        let (_, reply) = self.backend.complete(index);
        ensure!(
            reply.result.is_ok() == done,
            "{request:?} was answered otherwise: {reply:?}"
        );
        let is_mark = done && makes_durable(&request) && self.plans.is_some();
        self.figures.marks += u64::from(is_mark);
        Ok(is_mark)
    }

    /// Cuts the power, starts the node again, and judges what the guest's disk is then.
    fn look(&mut self) -> Result<()> {
        let point = self.figures.points();
        let Some((before, after)) = &self.plans else {
            bail!("a point without a promise");
        };
        let mut next = after.clone();
        let step = next.advance();
        let promise = Promise {
            before: before.files().clone(),
            step,
            after: next.files().clone(),
        };
        let mut random = Random::new(Random::new(self.seed ^ point << 32).next_u64());
        let backend = cut(&self.backend, &mut random);
        let whole = point.is_multiple_of(WHOLE_OF);
        let ranges = if whole {
            pieces(&BTreeSet::from_iter(0..self.kind.size() / BLOCK_SIZE))
        } else {
            pieces(&self.written)
        };
        let image = self.medium.blank()?;
        let read = read_volume(backend, &self.memory, random.next_u64(), ranges)
            .map_err(|trouble| anyhow!("opening the volume again: {trouble}"))?;
        for (offset, bytes) in read {
            image.put(offset, &bytes)?;
            if whole {
                self.nothing_elsewhere(offset, &bytes)?;
            }
        }
        self.medium.judge(&promise)
    }

    fn nothing_elsewhere(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let blocks = bytes.chunks(usize::try_from(BLOCK_SIZE)?);
        for (number, block) in (offset / BLOCK_SIZE..).zip(blocks) {
            let zero = block.iter().all(|byte| *byte == 0);
            ensure!(
                zero || self.written.contains(&number),
                "block {number} of the volume holds data that nobody wrote"
            );
        }
        Ok(())
    }
}

/// All lost, all kept, or anything between; most bugs show at the ends.
fn cut(backend: &SimulatedBackend, random: &mut Random) -> SimulatedBackend {
    let lost = [0, 1, 4, 7, 8][usize::try_from(random.below(5)).expect("small")];
    let mut chooser = |options: usize| {
        if random.below(8) < lost {
            return 0;
        }
        let back = usize::try_from(random.below(2)).expect("small");
        options - 1 - back.min(options - 1)
    };
    backend.clone().power_cut(&mut chooser)
}

/// Blocks as ranges of bytes, none longer than a read.
fn pieces(blocks: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for block in blocks {
        let (start, end) = (block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
        match ranges.last_mut() {
            Some(last) if last.end == start && end - last.start <= READ_LEN => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// Bytes by their place.
type Pieces = BTreeMap<u64, Vec<u8>>;

/// What a guest reads from the volume when the node has started again on this pool.
fn read_volume(
    backend: SimulatedBackend,
    memory: &MemoryPool,
    seed: u64,
    ranges: Vec<Range<u64>>,
) -> Result<Pieces, Trouble> {
    let mut machine = Machine::start(CrashPoint::empty(backend), memory, seed);
    let link = machine.link();
    let read = std::rc::Rc::new(std::cell::RefCell::new(Pieces::new()));
    let task = {
        let read = std::rc::Rc::clone(&read);
        async move {
            let (volume, _size) =
                Volume::open(&link, find(&link).await?, OpenMode::Exclusive).await?;
            for range in ranges {
                let len = usize::try_from(range.end - range.start).expect("short ranges");
                let bytes = volume.read(range.start, len).await?;
                read.borrow_mut().insert(range.start, bytes);
            }
            Ok(())
        }
    };
    machine.spawn(task);
    machine.finish()?;
    Ok(read.take())
}

async fn find(link: &Link) -> Result<Lineage, Trouble> {
    let name = Name::try_from(VOLUME.to_owned())?;
    match link.catalogue(CatalogueRequest::Lookup { name }).await {
        CatalogueReply::Entry(entry) => Ok(entry.lineage),
        CatalogueReply::Failed(error) => Err(error.into()),
        other => Err(Trouble::Wrong(format!("a look-up was told {other:?}"))),
    }
}
