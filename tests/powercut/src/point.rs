//! One point of a recording: the pool when the power fails there, and what was promised by then.
//!
//! Invariant: what is left of a point depends on the recording, the seed and the point's number, whoever looks at it and when.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Result, anyhow, ensure};
use archipelago_doubles::simulated::{Random, SimulatedBackend};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::ids::{BLOCK_SIZE, Lineage, Name};
use archipelago_protocol::volume::OpenMode;
use archipelago_simulation::machine::{CrashPoint, Link, Machine};
use archipelago_simulation::memory::MemoryPool;
use archipelago_simulation::trouble::Trouble;
use archipelago_simulation::volume::Volume;

use crate::medium::Medium;
use crate::promise::Promise;
use crate::record::VOLUME;

/// Bytes of a read at most.
const READ_LEN: u64 = 256 << 10;
/// One of so many points is read whole.
const WHOLE_OF: u64 = 200;

/// A moment of a recording.
#[derive(Debug)]
pub struct Point {
    /// Its number.
    pub number: u64,
    /// Of the recording.
    pub seed: u64,
    /// The pool, with requests in flight.
    pub backend: SimulatedBackend,
    /// Blocks below the report that the guest ever wrote to.
    pub written: BTreeSet<u64>,
    /// What must be there.
    pub promise: Promise,
}

impl Point {
    /// Cuts the power, starts the node again, and validates on `medium` what the guest's disk is then.
    ///
    /// # Errors
    /// What is not as promised.
    pub fn look(self, medium: &Medium, memory: &MemoryPool) -> Result<()> {
        let mut random = Random::new(Random::new(self.seed ^ self.number << 32).next_u64());
        let backend = cut(self.backend, &mut random);
        let whole = self.number.is_multiple_of(WHOLE_OF);
        let ranges = if whole {
            pieces(&BTreeSet::from_iter(0..medium.size() / BLOCK_SIZE))
        } else {
            pieces(&self.written)
        };
        let image = medium.blank()?;
        let read = read_volume(backend, memory, random.next_u64(), ranges)
            .map_err(|trouble| anyhow!("opening the volume again: {trouble}"))?;
        for (offset, bytes) in read {
            image.put(offset, &bytes)?;
            if whole {
                nothing_elsewhere(&self.written, offset, &bytes)?;
            }
        }
        medium.validate(&self.promise)
    }
}

fn nothing_elsewhere(written: &BTreeSet<u64>, offset: u64, bytes: &[u8]) -> Result<()> {
    let blocks = bytes.chunks(usize::try_from(BLOCK_SIZE)?);
    for (number, block) in (offset / BLOCK_SIZE..).zip(blocks) {
        let zero = block.iter().all(|byte| *byte == 0);
        ensure!(
            zero || written.contains(&number),
            "block {number} of the volume holds data that nobody wrote"
        );
    }
    Ok(())
}

/// All lost, all kept, or anything between; most bugs show at the ends.
fn cut(backend: SimulatedBackend, random: &mut Random) -> SimulatedBackend {
    let lost = [0, 1, 4, 7, 8][usize::try_from(random.below(5)).expect("small")];
    let mut chooser = |options: usize| {
        if random.below(8) < lost {
            return 0;
        }
        let back = usize::try_from(random.below(2)).expect("small");
        options - 1 - back.min(options - 1)
    };
    backend.power_cut(&mut chooser)
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
        other => Err(Trouble::Wrong(format!("a look-up got {other:?}"))),
    }
}
