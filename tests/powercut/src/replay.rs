//! A recording, done again on the simulated pool up to each of its points.
//!
//! A point is a completed sync, durable write or swap, or a guest's report, from the first report on. Points are looked at
//! by several threads, whose order changes nothing: see [`Point`].

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::{Context, Result, ensure};
use archipelago_blocker::Backend;
use archipelago_doubles::Recorded;
use archipelago_doubles::SimulatedBackend;
use archipelago_protocol::ids::BLOCK_SIZE;
use archipelago_protocol::object::{FLAG_DURABLE, IO_LEN_MAX, ObjectKind, ObjectOp, ObjectRequest};
use xseg::Region;

use crate::medium::FileSystem;
use crate::plan::Plan;
use crate::point::Point;
use crate::promise::Promise;
use crate::record::report_offset;
use crate::report;
use crate::validators::{Failure, Validators};

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

/// A recording, as far as it was read.
#[derive(Debug)]
pub struct Replay {
    kind: FileSystem,
    seed: u64,
    validators: Validators,
    region: Region,
    backend: SimulatedBackend,
    /// Requests in flight, in the order in which they were started, as the backend has them.
    in_flight: Vec<(u64, ObjectRequest)>,
    /// Blocks below the report that the guest ever wrote to.
    written: BTreeSet<u64>,
    /// After the last report. `None`: there is none yet.
    plan: Option<Plan>,
    figures: Figures,
}

fn makes_durable(request: &ObjectRequest) -> bool {
    match request.op {
        ObjectOp::Sync | ObjectOp::SyncPool => true,
        ObjectOp::CompareAndSwap | ObjectOp::Append | ObjectOp::Seal | ObjectOp::Create => true,
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
            validators: Validators::start(kind)?,
            region: Region::anonymous(IO_LEN_MAX as usize)?,
            backend: SimulatedBackend::new(seed),
            in_flight: Vec::new(),
            written: BTreeSet::new(),
            plan: None,
            figures: Figures::default(),
        })
    }

    /// Reads `recording` and has every point looked at, or one only.
    ///
    /// # Errors
    /// The first point that breaks a promise, or what is wrong with the recording.
    pub fn run(mut self, recording: &mut impl Read, only: Option<u64>) -> Result<Figures, Failure> {
        let read = self.read(recording, only);
        let number = self.figures.points();
        self.validators.finish()?;
        read.map_err(|error| Failure { number, error })?;
        Ok(self.figures)
    }

    /// Until the end, or until a point has failed.
    fn read(&mut self, recording: &mut impl Read, only: Option<u64>) -> Result<()> {
        while let Some(entry) = Recorded::read(recording)? {
            let is_point = self.advance(entry)?;
            let number = self.figures.points();
            if is_point
                && only.is_none_or(|only| only == number)
                && !self.validators.take(self.point()?)
            {
                break;
            }
        }
        Ok(())
    }

    /// Whether this is a point.
    fn advance(&mut self, entry: Recorded) -> Result<bool> {
        match entry {
            Recorded::Started {
                ticket,
                request,
                data,
            } => self.start(ticket, &request, &data),
            Recorded::Answered { ticket, done } => self.answer(ticket, done),
        }
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
        let plan = self.plan.get_or_insert_with(|| Plan::new(self.seed));
        while plan.number() < number {
            plan.advance();
        }
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
        let is_mark = done && makes_durable(&request) && self.plan.is_some();
        self.figures.marks += u64::from(is_mark);
        Ok(is_mark)
    }

    /// The point that the recording has come to.
    fn point(&self) -> Result<Point> {
        let plan = self.plan.as_ref().context("a point without a promise")?;
        let mut next = plan.clone();
        let step = next.advance();
        Ok(Point {
            number: self.figures.points(),
            seed: self.seed,
            backend: self.backend.clone(),
            written: self.written.clone(),
            promise: Promise {
                before: plan.files().clone(),
                step,
                after: next.files().clone(),
            },
        })
    }
}
