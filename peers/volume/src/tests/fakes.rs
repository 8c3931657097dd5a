//! A mapper and a blocker that keep just enough to be right: maps as plain tables, containers as byte arrays, each with
//! what is durable kept apart.

use std::collections::BTreeMap;

use archipelago_protocol::journaled::{JournaledBlockId, JournaledData};
use archipelago_protocol::map::{
    FLAG_DURABLE_POOL, FLAG_HOME, FLAG_WRITE, MapOp, MapReply, MapRequest, Placement,
};
use archipelago_protocol::object::{
    FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest,
};
use archipelago_protocol::status::{BlockState, MapRuns};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage, ObjectSize};
use xseg::{RegionId, RegionTable};

/// The volume under test and its parent.
pub(crate) const OWN: Lineage = Lineage(0xabc);
pub(crate) const PARENT: Lineage = Lineage(0xdef << 64);
/// Lineages by index: not in an order that could be guessed.
const INDEXED: [Lineage; 3] = [PARENT, Lineage(77), OWN];

/// Where a block is; `None`: zero.
pub(crate) type Block = Option<(Lineage, Epoch)>;

#[derive(Debug)]
pub(crate) struct FakeMapper {
    pub(crate) size: u64,
    pub(crate) session: u32,
    pub(crate) is_open: bool,
    pub(crate) epoch: Epoch,
    pub(crate) frozen: Epoch,
    /// Epochs up to this one belong to snapshots that were made.
    sealed: Epoch,
    pub(crate) live: Vec<Block>,
    /// What a power cut leaves.
    pub(crate) logged: Vec<Block>,
    /// Blocks in the log that are not known to be at their home location: a recovery after a power cut writes them there.
    pub(crate) journaled: BTreeMap<JournaledBlockId, Vec<u8>>,
    /// The live map at each cut.
    cuts: BTreeMap<u64, Vec<Block>>,
    cut: u64,
    /// The snapshot between begin and commit: its token, epoch, tree.
    pub(crate) pending: Option<(u64, Epoch, Vec<Block>)>,
    pub(crate) snapshots: Vec<(u64, Vec<Block>)>,
    /// Longest run of an answer, in blocks.
    pub(crate) run_max: u64,
    pub(crate) flush_soon: bool,
    /// Completed writes of the pool are durable.
    pub(crate) durable: bool,
}

impl FakeMapper {
    pub(crate) fn new(size: u64, live: Vec<Block>) -> Self {
        FakeMapper {
            size,
            session: 0,
            is_open: false,
            epoch: Epoch(6),
            frozen: Epoch(6),
            sealed: Epoch(6),
            logged: live.clone(),
            journaled: BTreeMap::new(),
            live,
            cuts: BTreeMap::new(),
            cut: 0,
            pending: None,
            snapshots: Vec::new(),
            run_max: u64::MAX,
            flush_soon: false,
            durable: false,
        }
    }

    pub(crate) fn owns(&self, block: usize) -> bool {
        self.live[block].is_some_and(|(lineage, epoch)| lineage == OWN && epoch > self.frozen)
    }

    /// A new process takes over; the presence journal has kept the live map.
    pub(crate) fn restart(&mut self) {
        self.is_open = false;
        self.pending = None;
        self.cuts.clear();
    }

    pub(crate) fn serve(&mut self, request: &MapRequest, journaled: &JournaledData) -> MapReply {
        if request.op == MapOp::Open {
            assert!(!self.is_open, "one session at a time");
            self.is_open = true;
            self.session += 1;
            self.epoch.0 += 1;
            let log2 = u64::from(ObjectSize::MIN.log2());
            let flags = match self.durable {
                true => FLAG_DURABLE_POOL,
                false => 0,
            };
            return MapReply {
                flags,
                values: [self.size, log2],
                ..MapReply::done(self.session)
            };
        }
        assert!(
            self.is_open && request.handle == self.session,
            "a session of this mapper: {request:?}"
        );
        let first = usize::try_from(request.offset / BLOCK_SIZE).unwrap();
        let count = usize::try_from(request.len / BLOCK_SIZE).unwrap();
        assert!(
            request.offset.is_multiple_of(BLOCK_SIZE) && request.len.is_multiple_of(BLOCK_SIZE)
        );
        assert!(
            first + count <= self.live.len(),
            "inside the volume: {request:?}"
        );
        let flags = if self.flush_soon {
            archipelago_protocol::map::FLAG_FLUSH_REQUESTED
        } else {
            0
        };
        match request.op {
            MapOp::Locate => self.locate(first, count, request.flags & FLAG_WRITE != 0),
            MapOp::Status => self.status(first, count),
            MapOp::Lineage => {
                let values = INDEXED[usize::try_from(request.operand[0]).unwrap()].to_words();
                MapReply {
                    values,
                    ..MapReply::done(0)
                }
            }
            MapOp::Written => {
                let epoch = Epoch(request.operand[0]);
                for block in first..first + count {
                    if let Some((_, _, tree)) =
                        self.pending.as_mut().filter(|pending| epoch <= pending.1)
                    {
                        tree[block] = Some((OWN, epoch));
                    }
                    if !self.live[block]
                        .is_some_and(|(lineage, newer)| lineage == OWN && newer > epoch)
                    {
                        self.live[block] = Some((OWN, epoch));
                    }
                }
                MapReply {
                    flags,
                    ..MapReply::done(0)
                }
            }
            MapOp::Zero => {
                self.live[first..first + count].fill(None);
                MapReply {
                    flags,
                    ..MapReply::done(0)
                }
            }
            MapOp::FlushBegin => {
                self.cut += 1;
                self.cuts.insert(self.cut, self.live.clone());
                // Until it is committed it is new, also if a commit failed or never came.
                let something = self.live != self.logged || !self.journaled.is_empty();
                MapReply {
                    values: [self.cut, 0],
                    ..MapReply::done(u32::from(something))
                }
            }
            MapOp::FlushCommit => {
                self.logged = self
                    .cuts
                    .remove(&request.operand[0])
                    .expect("a cut that was given");
                if request.flags & FLAG_HOME != 0 {
                    assert!(journaled.is_empty(), "home, and new journaled data");
                    self.journaled.clear();
                }
                for (of, copy) in journaled.iter() {
                    assert!(
                        of.epoch > self.sealed,
                        "a snapshot's block is journaled: {of:?}"
                    );
                    self.journaled.insert(of, copy.to_vec());
                }
                MapReply::done(0)
            }
            MapOp::SnapshotBegin => {
                assert!(self.pending.is_none(), "one snapshot at a time");
                self.pending = Some((request.operand[0], self.epoch, self.live.clone()));
                self.frozen = self.epoch;
                self.epoch.0 += 1;
                MapReply {
                    values: [self.epoch.0, 0],
                    ..MapReply::done(0)
                }
            }
            MapOp::SnapshotCommit => {
                let (token, epoch, tree) = self.pending.take().expect("begun");
                self.sealed = epoch;
                self.journaled.retain(|of, _| of.epoch > epoch);
                assert_eq!(token, request.operand[0]);
                self.snapshots.push((token, tree));
                MapReply::done(0)
            }
            MapOp::SnapshotAbort => {
                self.pending = None;
                MapReply::done(0)
            }
            MapOp::Abandon => {
                self.live = self.logged.clone();
                self.restart();
                MapReply::done(0)
            }
            MapOp::Close => {
                assert_eq!(
                    self.live, self.logged,
                    "everything is logged before a close"
                );
                assert!(
                    self.journaled.is_empty(),
                    "everything is at its home location before a close"
                );
                self.is_open = false;
                MapReply::done(0)
            }
            MapOp::Open => unreachable!("answered above"),
        }
    }

    /// Runs of at most `run_max` blocks, so that neighbours may be of one state.
    fn status(&self, first: usize, count: usize) -> MapReply {
        let state = |block: usize| match self.live[block] {
            Some(_) => BlockState::Data,
            None => BlockState::Hole,
        };
        let mut runs = MapRuns::default();
        let (mut at, end) = (first, first + count);
        while at < end && (runs.len() as usize) < MapRuns::MAX {
            let same = (at..end).take_while(|block| state(*block) == state(at));
            let blocks = (same.count() as u64).min(self.run_max);
            assert!(runs.push(state(at), blocks));
            at += usize::try_from(blocks).unwrap();
        }
        MapReply::status(&runs)
    }

    fn locate(&self, first: usize, count: usize, write: bool) -> MapReply {
        let place = |block: usize| match self.live[block] {
            Some((lineage, epoch)) if !write || self.owns(block) => {
                (Placement::Stored, epoch, lineage)
            }
            _ if write => (Placement::First, self.epoch, OWN),
            _ => (Placement::Zero, Epoch(0), OWN),
        };
        let (placement, epoch, lineage) = place(first);
        let same = (first..first + count)
            .take_while(|block| place(*block) == place(first))
            .count() as u64;
        let index = INDEXED.iter().position(|known| *known == lineage).unwrap();
        let len = same.min(self.run_max) * BLOCK_SIZE;
        MapReply::run(
            u32::try_from(len).unwrap(),
            placement,
            epoch,
            u32::try_from(index).unwrap(),
        )
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Container {
    pub(crate) live: Vec<u8>,
    pub(crate) durable: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeBlocker {
    pub(crate) capacity: usize,
    pub(crate) containers: BTreeMap<(Lineage, Epoch), Container>,
}

impl FakeBlocker {
    pub(crate) fn container(&mut self, lineage: Lineage, epoch: Epoch) -> &mut Container {
        let capacity = self.capacity;
        let empty = || Container {
            live: vec![0; capacity],
            durable: vec![0; capacity],
        };
        self.containers
            .entry((lineage, epoch))
            .or_insert_with(empty)
    }

    pub(crate) fn sync_all(&mut self) {
        self.containers
            .values_mut()
            .for_each(|container| container.durable = container.live.clone());
    }

    /// Recovery after a power cut: journaled blocks are written where they belong.
    pub(crate) fn bring_home(&mut self, journaled: BTreeMap<JournaledBlockId, Vec<u8>>) {
        for (of, copy) in journaled {
            let at = usize::try_from(of.block).unwrap() * 4096;
            let container = self.container(OWN, of.epoch);
            container.live[at..at + 4096].copy_from_slice(&copy);
            container.durable[at..at + 4096].copy_from_slice(&copy);
        }
    }

    /// A sync failed: what was not durable is gone.
    pub(crate) fn lose(&mut self) {
        self.containers
            .values_mut()
            .for_each(|container| container.live = container.durable.clone());
    }

    pub(crate) fn serve(&mut self, request: &ObjectRequest, regions: &RegionTable) -> ObjectReply {
        let ObjectId {
            lineage,
            kind,
            number,
        } = request.id;
        if request.op == ObjectOp::SyncPool {
            self.sync_all();
            return ObjectReply::done(0);
        }
        assert_eq!(kind, ObjectKind::Data);
        let epoch = Epoch(number);
        let at = usize::try_from(request.offset).unwrap();
        let len = request.len as usize;
        match request.op {
            ObjectOp::Read => {
                let Some(container) = self.containers.get(&(lineage, epoch)) else {
                    return ObjectReply::failed(ErrorCode::NotFound);
                };
                let mut from = &container.live[at..at + len];
                for (region, offset, len) in buffers(request, regions) {
                    let (now, rest) = from.split_at(len);
                    regions.get(region).unwrap().write(offset, now).unwrap();
                    from = rest;
                }
            }
            ObjectOp::Write => {
                assert!(lineage == OWN, "only the volume's own objects are written");
                assert!(request.offset.is_multiple_of(512) && len.is_multiple_of(512) && len > 0);
                let object = ObjectSize::MIN.bytes();
                assert_eq!(
                    request.offset / object,
                    (request.offset + u64::from(request.len) - 1) / object
                );
                let container = self.container(lineage, epoch);
                let mut into = &mut container.live[at..at + len];
                for (region, offset, len) in buffers(request, regions) {
                    let (now, rest) = into.split_at_mut(len);
                    regions.get(region).unwrap().read(offset, now).unwrap();
                    into = rest;
                }
                if request.flags & FLAG_DURABLE != 0 {
                    container.durable[at..at + len].copy_from_slice(&container.live[at..at + len]);
                }
            }
            ObjectOp::Sync => {
                let container = self.container(lineage, epoch);
                container.durable = container.live.clone();
                return ObjectReply::done(0);
            }
            op => panic!("a volume peer does not ask for {op:?}"),
        }
        ObjectReply::done(request.len)
    }
}

/// The buffers of a request; their sum is its length.
fn buffers(request: &ObjectRequest, regions: &RegionTable) -> Vec<(RegionId, u64, usize)> {
    let memory = request.memory;
    let len = request.len as usize;
    let list = if memory.count == 0 {
        vec![(RegionId(memory.region), memory.offset, len)]
    } else {
        let entry = |index: u64| {
            let mut bytes = [0; 16];
            let region = regions.get(RegionId(memory.region)).unwrap();
            region.read(memory.offset + index * 16, &mut bytes).unwrap();
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let offset = u64::from_le_bytes(bytes[8..].try_into().unwrap());
            (RegionId(word(0)), offset, word(4) as usize)
        };
        (0..u64::from(memory.count)).map(entry).collect()
    };
    assert_eq!(
        list.iter().map(|buffer| buffer.2).sum::<usize>(),
        len,
        "{request:?}"
    );
    list
}
