//! A run: nodes create, clone, rename, snapshot, remove, open and close, die, sleep and are declared dead, all at random.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_doubles::simulated::Random;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind as EntryKind, Page};
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Lineage, Name, ObjectSize};
use archipelago_protocol::labels::Labels;
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::on_full::OnFull;

use super::history::{Answer, Called, Kind, Names, Op, is_one};
use super::world::World;

/// So few names that nodes meet.
const NAMES: [char; 4] = ['a', 'b', 'c', 'd'];
/// Operations of a run: the search for a history grows fast with them.
const OPS: usize = 14;
/// Completions of a run: more is a circle.
const STEPS_MAX: usize = 100_000;
/// Imports, snapshots and clones of a run begin with this.
const FIRST_LINEAGE: u128 = 1 << 64;

/// What a node is doing.
enum Doing {
    Names { op: Op, tag: u64, from: u64 },
    Open { lineage: u128, tag: u64 },
    Close { tag: u64 },
}

/// What became of a run, for its numbers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Appends that came too late.
    pub refused: u64,
    /// Checkpoints of the catalogue.
    pub checkpoints: u64,
    /// Mappers that died.
    pub crashes: u64,
    /// Mappers that were declared dead, and lived.
    pub fenced: u64,
    /// Opens that succeeded.
    pub opened: u64,
    /// Opens that were refused because another node had the volume.
    pub in_use: u64,
}

struct Run {
    world: World,
    random: Random,
    now: u64,
    lineages: u128,
    doing: BTreeMap<usize, Doing>,
    called: Vec<Called>,
    /// Volumes that are open: by whom, and the handle.
    open: BTreeMap<u128, (usize, u128, u32)>,
    /// Incarnations that have died or were declared dead: what they own may be taken, whether they know it or not.
    ended: BTreeSet<u128>,
    counts: Counts,
}

fn name(letter: char) -> Name {
    letter.to_string().parse().expect("a legal name")
}

fn request(op: Op) -> CatalogueRequest {
    let labels = Labels::default();
    match op {
        Op::Create(to, lineage) => CatalogueRequest::Create {
            name: name(to),
            lineage: Lineage(lineage),
            kind: EntryKind::Volume,
            size: 1 << 20,
            object_size: ObjectSize::MIN,
            created: 0,
            on_full: OnFull::default(),
            labels,
        },
        Op::Clone(source, to, lineage) => CatalogueRequest::Clone {
            source: name(source),
            name: name(to),
            lineage: Lineage(lineage),
            size: None,
            created: 0,
            on_full: None,
            labels,
        },
        Op::Snapshot(volume, to, lineage) => CatalogueRequest::Snapshot {
            volume: name(volume),
            name: name(to),
            lineage: Lineage(lineage),
            created: 0,
            labels,
        },
        Op::Rename(from, to) => CatalogueRequest::Rename {
            from: name(from),
            to: name(to),
        },
        Op::Remove(from) => CatalogueRequest::Remove { name: name(from) },
        Op::Lookup(of) => CatalogueRequest::Lookup { name: name(of) },
        Op::List => CatalogueRequest::List {
            prefix: String::new(),
            after: None,
            limit: 100,
            label: None,
        },
    }
}

fn listed(page: &Page) -> Names {
    let entries = page.entries.iter();
    let of = entries.map(|entry| {
        let letter = entry.name.as_str().chars().next().expect("one letter");
        let kind = match entry.kind {
            EntryKind::Snapshot => Kind::Snapshot,
            _ => Kind::Volume,
        };
        (letter, (entry.lineage.0, kind))
    });
    of.collect()
}

fn answer(reply: CatalogueReply) -> Answer {
    match reply {
        CatalogueReply::Entry(entry) => Answer::Entry(entry.lineage.0),
        CatalogueReply::Page(page) => Answer::All(listed(&page)),
        CatalogueReply::Failed(error) => match error.code {
            ErrorCode::NotFound => Answer::NotFound,
            ErrorCode::Exists => Answer::Exists,
            ErrorCode::Invalid => Answer::Invalid,
            ErrorCode::InUse => Answer::Busy,
            _ => Answer::Unknown,
        },
        _ => Answer::Done,
    }
}

/// Does a run with this many nodes.
///
/// # Errors
/// What is wrong.
pub fn run(seed: u64, nodes: usize) -> Result<Counts, String> {
    let mut run = Run {
        world: World::new(nodes, seed),
        random: Random::new(seed),
        now: 0,
        lineages: FIRST_LINEAGE,
        doing: BTreeMap::new(),
        called: Vec::new(),
        open: BTreeMap::new(),
        ended: BTreeSet::new(),
        counts: Counts::default(),
    };
    let mut begun = 0;
    for _ in 0..STEPS_MAX {
        run.world.send();
        run.take_answers()?;
        if begun == OPS && run.doing.is_empty() {
            return run.finish();
        }
        match run.below(40) {
            0 => run.crash(),
            1 => run.freeze(),
            2 => run.thaw(),
            3 => run.fence(),
            4..12 if begun < OPS => begun += usize::from(run.begin()),
            _ => {
                if !run.complete() && begun == OPS {
                    // All that is left is a frozen node's.
                    run.world
                        .nodes
                        .iter_mut()
                        .for_each(|node| node.frozen = false);
                }
            }
        }
    }
    Err("the nodes go round in circles".to_owned())
}

impl Run {
    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.random.below(count as u64)).expect("below a small number")
    }

    fn complete(&mut self) -> bool {
        self.now += 1;
        self.world.complete(&mut self.random)
    }

    fn letter(&mut self) -> char {
        NAMES[self.below(NAMES.len())]
    }

    /// Has a node that is idle do something. Whether one was idle.
    fn begin(&mut self) -> bool {
        let number = self.below(self.world.nodes.len());
        if self.doing.contains_key(&number) || self.world.nodes[number].frozen {
            return false;
        }
        self.now += 1;
        self.lineages += 1;
        let (one, other, fresh) = (self.letter(), self.letter(), self.lineages);
        let op = match self.below(14) {
            0..3 => Op::Create(one, fresh),
            3 => Op::Clone(one, other, fresh),
            4..6 => Op::Snapshot(one, other, fresh),
            6..8 => Op::Rename(one, other),
            8 => Op::Remove(one),
            9 => Op::Lookup(one),
            10 => Op::List,
            _ => return self.begin_session(number),
        };
        let tag = self.world.nodes[number].ask(request(op));
        let from = self.now;
        self.doing.insert(number, Doing::Names { op, tag, from });
        true
    }

    /// Closes what the node has open, or opens some volume.
    fn begin_session(&mut self, number: usize) -> bool {
        let node = &mut self.world.nodes[number];
        let own = self.open.iter();
        let mut own = own
            .filter(|(_, (of, incarnation, _))| *of == number && *incarnation == node.incarnation);
        if let Some((lineage, (_, _, handle))) = own.next() {
            let tag = node.map(MapRequest::new(MapOp::Close, *handle));
            // It may be closed long before the answer comes.
            let lineage = *lineage;
            self.open.remove(&lineage);
            self.doing.insert(number, Doing::Close { tag });
            return true;
        }
        let made = usize::try_from(self.lineages - FIRST_LINEAGE).expect("few");
        let lineage = FIRST_LINEAGE + 1 + self.below(made) as u128;
        let tag = self.world.nodes[number].map(MapRequest::open(Lineage(lineage), true));
        self.doing.insert(number, Doing::Open { lineage, tag });
        true
    }

    fn take_answers(&mut self) -> Result<(), String> {
        for number in 0..self.world.nodes.len() {
            let node = &mut self.world.nodes[number];
            match self.doing.remove(&number) {
                Some(Doing::Names { op, tag, from }) => match node.answer(tag) {
                    Some(reply) => self.answered(op, answer(reply), from),
                    None => drop(self.doing.insert(number, Doing::Names { op, tag, from })),
                },
                Some(Doing::Open { lineage, tag }) => match node.map_answer(tag) {
                    Some(reply) => {
                        let incarnation = node.incarnation;
                        self.opened(number, incarnation, lineage, reply.result)?;
                    }
                    None => drop(self.doing.insert(number, Doing::Open { lineage, tag })),
                },
                Some(Doing::Close { tag }) => match node.map_answer(tag) {
                    Some(_) => {}
                    None => drop(self.doing.insert(number, Doing::Close { tag })),
                },
                None => {}
            }
        }
        Ok(())
    }

    fn answered(&mut self, op: Op, answer: Answer, from: u64) {
        self.now += 1;
        let until = match answer {
            Answer::Unknown => u64::MAX,
            _ => self.now,
        };
        self.called.push(Called {
            op,
            answer,
            from,
            until,
        });
    }

    fn opened(
        &mut self,
        number: usize,
        incarnation: u128,
        lineage: u128,
        result: Result<u32, ErrorCode>,
    ) -> Result<(), String> {
        match result {
            Ok(_) if self.ended.contains(&incarnation) => Ok(()),
            Ok(handle) => {
                self.counts.opened += 1;
                let before = self.open.insert(lineage, (number, incarnation, handle));
                match before {
                    Some((other, ..)) => Err(format!(
                        "node {number} has opened a volume that node {other} has open"
                    )),
                    None => Ok(()),
                }
            }
            Err(ErrorCode::InUse) => {
                self.counts.in_use += 1;
                Ok(())
            }
            // A snapshot, or nothing any more; or the node was declared dead.
            Err(ErrorCode::ReadOnly | ErrorCode::NotFound | ErrorCode::Stale) => Ok(()),
            Err(code) => {
                let why = self.world.nodes[number].damage(Lineage(lineage));
                Err(format!(
                    "node {number} could not open a volume: {code:?}, {why:?}"
                ))
            }
        }
    }

    /// A node stops to know what became of what it did.
    fn forget(&mut self, number: usize, incarnation: u128) {
        if let Some(Doing::Names { op, from, .. }) = self.doing.remove(&number) {
            self.answered(op, Answer::Unknown, from);
        }
        self.end_sessions(incarnation);
    }

    /// An incarnation has ended: whatever it has open may be taken.
    fn end_sessions(&mut self, incarnation: u128) {
        self.ended.insert(incarnation);
        self.open.retain(|_, (_, of, _)| *of != incarnation);
    }

    fn crash(&mut self) {
        let number = self.below(self.world.nodes.len());
        let before = self.world.crash(number);
        self.counts.crashes += 1;
        self.forget(number, before);
    }

    fn freeze(&mut self) {
        let number = self.below(self.world.nodes.len());
        self.world.nodes[number].frozen = true;
    }

    fn thaw(&mut self) {
        let number = self.below(self.world.nodes.len());
        self.world.nodes[number].frozen = false;
    }

    /// An idle node declares another one dead, which may live, and goes on as if nothing had been.
    fn fence(&mut self) {
        let (number, other) = (
            self.below(self.world.nodes.len()),
            self.below(self.world.nodes.len()),
        );
        if number == other || self.world.nodes[number].frozen {
            return;
        }
        let incarnation = self.world.nodes[other].incarnation;
        self.world.nodes[number].ask(CatalogueRequest::Fence {
            incarnation: Lineage(incarnation),
        });
        self.counts.fenced += 1;
        // From now on the others may take what it has; it may still be answered, which is one history all the same.
        self.end_sessions(incarnation);
    }

    /// What is there in the end is what the operations explain; a check finds nothing wrong, and what was removed is gone.
    fn finish(mut self) -> Result<Counts, String> {
        for node in &mut self.world.nodes {
            node.frozen = false;
            self.counts.refused += node.refused();
            self.counts.checkpoints += node.catalogue_checkpoints();
        }
        let number = self.world.join();
        let mut ends = Vec::new();
        for number in 0..number {
            ends.push(self.world.nodes[number].incarnation);
        }
        for incarnation in ends {
            let incarnation = Lineage(incarnation);
            self.last(number, CatalogueRequest::Fence { incarnation })?;
        }
        let last = match self.last(number, request(Op::List))? {
            CatalogueReply::Page(page) => listed(&page),
            other => return Err(format!("the last listing is {other:?}")),
        };
        if !is_one(&self.called, &last) {
            let called: Vec<String> = self.called.iter().map(|call| format!("{call:?}")).collect();
            return Err(format!(
                "no history explains this, and {last:?} in the end:\n{}",
                called.join("\n")
            ));
        }
        match self.last(number, CatalogueRequest::Check { repair: false })? {
            CatalogueReply::Report(report) if report.clean => {}
            other => return Err(format!("the check says {other:?}")),
        }
        Ok(self.counts)
    }

    /// The answer of the last node that is left.
    fn last(&mut self, number: usize, request: CatalogueRequest) -> Result<CatalogueReply, String> {
        let tag = self.world.nodes[number].ask(request);
        for _ in 0..STEPS_MAX {
            self.world.send();
            if let Some(reply) = self.world.nodes[number].answer(tag) {
                return match reply {
                    CatalogueReply::Failed(error) => Err(format!("in the end: {error}")),
                    reply => Ok(reply),
                };
            }
            if !self.complete() {
                return Err("the last node waits for nothing".to_owned());
            }
        }
        Err("the last node goes round in circles".to_owned())
    }
}
