//! Several nodes on one pool: what one of them does the others see, and nothing is taken from a node that lives.

use archipelago_doubles::MemoryJournals;
use archipelago_mapper::{MapperConfig, Sharing};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind};
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::{ObjectKind, ObjectOp};
use archipelago_protocol::{ErrorCode, Labels, Lineage, ObjectSize};

use crate::rig::pool::Pool;
use crate::rig::{Rig, name, small, volume};

/// Nodes, each with a mapper and journals of its own.
pub(crate) struct Nodes {
    pub(crate) pool: Pool,
    pub(crate) rigs: Vec<Rig>,
    starts: u128,
}

impl Nodes {
    pub(crate) fn new(count: usize) -> Self {
        let mut nodes = Nodes {
            pool: Pool::default(),
            rigs: Vec::new(),
            starts: 0,
        };
        for _ in 0..count {
            let rig = nodes.started(nodes.rigs.len(), Sharing::Shared { ended: Vec::new() });
            nodes.rigs.push(rig);
        }
        nodes
    }

    /// Three, of which the first one had a volume open, with a 7 in block 1, when the second one declared it dead; volume and handle.
    fn with_a_dead_owner() -> (Self, Lineage, u32) {
        let mut nodes = Nodes::new(3);
        let own = nodes.on(0, |rig| rig.create("v", 1 << 20, ObjectSize::MIN));
        let handle = nodes.on(0, |rig| rig.open(own, true));
        nodes.on(0, |rig| rig.write(own, handle, 1, 7));
        nodes.on(0, |rig| rig.flush(handle)).unwrap();
        let fence = CatalogueRequest::Fence {
            incarnation: Lineage(nodes.rigs[0].config.owner),
        };
        assert_eq!(nodes.on(1, |rig| rig.control(fence)), CatalogueReply::Done);
        (nodes, own, handle)
    }

    /// Two mappers of one process, in place of all that there were.
    fn two_threads(mut self) -> Self {
        let numbers = [self.starts + 1, self.starts + 2];
        self.rigs.clear();
        for (index, sibling) in numbers.into_iter().rev().enumerate() {
            let rig = self.started(index, Sharing::Siblings(vec![sibling]));
            self.rigs.push(rig);
        }
        self
    }

    fn started(&mut self, index: usize, sharing: Sharing) -> Rig {
        self.starts += 1;
        let config = MapperConfig {
            owner: self.starts,
            node: format!("node{index}"),
            sharing,
            ..small()
        };
        let journals = MemoryJournals::new(config.pending_max);
        let mut rig = Rig::on(config, std::mem::take(&mut self.pool), journals);
        rig.number_lineages(self.starts);
        self.pool = std::mem::take(&mut rig.pool);
        rig
    }

    /// Node `index` is stopped by force and starts again.
    pub(crate) fn restart(&mut self, index: usize) {
        let before = self.rigs[index].config.owner;
        let ended = vec![before];
        self.rigs[index] = self.started(index, Sharing::Shared { ended });
    }

    /// Has node `index` do something.
    pub(crate) fn on<T>(&mut self, index: usize, act: impl FnOnce(&mut Rig) -> T) -> T {
        let rig = &mut self.rigs[index];
        std::mem::swap(&mut rig.pool, &mut self.pool);
        let done = act(rig);
        std::mem::swap(&mut rig.pool, &mut self.pool);
        done
    }
}

fn lookup(text: &str) -> CatalogueRequest {
    CatalogueRequest::Lookup { name: name(text) }
}

fn remove(text: &str) -> CatalogueRequest {
    CatalogueRequest::Remove { name: name(text) }
}

fn names(rig: &mut Rig) -> Vec<String> {
    let list = CatalogueRequest::List {
        prefix: String::new(),
        after: None,
        limit: 1000,
        label: None,
    };
    match rig.control(list) {
        CatalogueReply::Page(page) => page
            .entries
            .iter()
            .map(|entry| entry.name.to_string())
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// Why the request was refused.
fn refusal(rig: &mut Rig, request: CatalogueRequest) -> (ErrorCode, String) {
    match rig.control(request) {
        CatalogueReply::Failed(error) => (error.code, error.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_node_sees_what_the_others_have_done() {
    let mut nodes = Nodes::new(3);
    for round in 0..40 {
        let text = format!("v{round:02}");
        nodes.on(round % 3, |rig| rig.create(&text, 1 << 20, ObjectSize::MIN));
        nodes.on((round + 1) % 3, |rig| rig.entry(lookup(&text)));
    }
    // Checkpoints of all of them came in between.
    let expected: Vec<String> = (0..40).map(|round| format!("v{round:02}")).collect();
    for index in 0..3 {
        let checkpoints = nodes.rigs[index].mapper.counters().catalogue_checkpoints;
        assert!(checkpoints > 0, "{index}");
        assert_eq!(nodes.on(index, names), expected);
    }
    assert_eq!(nodes.pool.packs(Lineage::CATALOGUE), 1, "old ones are gone");
    // A name is given once.
    let taken = CatalogueRequest::Rename {
        from: name("v01"),
        to: name("v00"),
    };
    assert_eq!(nodes.on(1, |rig| rig.refused(taken)), ErrorCode::Exists);
    nodes.on(0, |rig| rig.control(remove("v00")));
    nodes.on(2, |rig| rig.create("v00", 1 << 20, ObjectSize::MIN));
    nodes.restart(1);
    assert_eq!(nodes.on(1, names), expected);
    nodes.on(1, Rig::assert_clean);
}

#[test]
fn who_has_slept_while_the_log_went_round_reads_the_checkpoint() {
    let mut nodes = Nodes::new(2);
    nodes.on(0, |rig| rig.create("a", 512, ObjectSize::MIN));
    nodes.on(1, |rig| rig.entry(lookup("a")));
    for round in 0..100 {
        nodes.on(0, |rig| {
            rig.create(&format!("b{round}"), 512, ObjectSize::MIN)
        });
    }
    nodes.on(1, |rig| rig.entry(lookup("b99")));
    nodes.on(1, |rig| rig.create("c", 512, ObjectSize::MIN));
    assert_eq!(nodes.on(0, names).len(), 102);
}

#[test]
fn a_change_that_comes_late_is_decided_again() {
    let mut nodes = Nodes::new(2);
    let create = |lineage| volume("v", Lineage(lineage));
    // The first one has decided, and its append has not been carried out.
    nodes.rigs[0].stalled = true;
    let tag = nodes.on(0, |rig| {
        let tag = rig.send_control(create(50));
        rig.step(ObjectOp::Read, None);
        tag
    });
    nodes.on(1, |rig| rig.entry(create(51)));
    nodes.rigs[0].stalled = false;
    let reply = nodes.on(0, |rig| {
        rig.run();
        rig.control_reply(tag)
    });
    assert!(
        matches!(&reply, CatalogueReply::Failed(error) if error.code == ErrorCode::Exists),
        "{reply:?}"
    );
    assert_eq!(nodes.rigs[0].mapper.counters().catalogue_refused, 1);
    assert_eq!(
        nodes.on(0, |rig| rig.entry(lookup("v"))).lineage,
        Lineage(51)
    );
}

#[test]
fn a_start_takes_nothing_from_a_node_that_lives() {
    let mut nodes = Nodes::new(2);
    let import = nodes.on(0, |rig| rig.import("i"));
    let writer = nodes.on(0, |rig| rig.open(import, true));
    nodes.on(0, |rig| rig.write(import, writer, 1, 5));
    // Between two sessions of its import, too.
    nodes.on(0, |rig| rig.close(writer));
    nodes.restart(1);
    let writer = nodes.on(0, |rig| rig.open(import, true));
    nodes.on(0, |rig| rig.write(import, writer, 2, 6));
    nodes.on(0, |rig| rig.close(writer));
    let publish = CatalogueRequest::Publish { name: name("i") };
    assert_eq!(nodes.on(0, |rig| rig.entry(publish)).kind, Kind::Image);
    // Of a node that has ended it does.
    let left = nodes.on(0, |rig| rig.import("left"));
    assert!(nodes.pool.holds(import));
    nodes.restart(0);
    assert_eq!(
        nodes.on(1, |rig| rig.refused(lookup("left"))),
        ErrorCode::NotFound
    );
    nodes.on(1, |rig| rig.create("left", 512, ObjectSize::MIN));
    assert!(!nodes.pool.holds(left));
    let reader = nodes.on(1, |rig| rig.open(import, false));
    assert_eq!(
        nodes.on(1, |rig| [rig.read(reader, 1), rig.read(reader, 2)]),
        [5, 6]
    );
}

#[test]
fn a_volume_is_taken_from_nobody_who_lives() {
    let mut nodes = Nodes::new(2);
    let own = nodes.on(0, |rig| rig.create("v", 1 << 20, ObjectSize::MIN));
    let handle = nodes.on(0, |rig| rig.open(own, true));
    nodes.on(0, |rig| rig.write(own, handle, 1, 7));
    for write in [true, false] {
        let opened = nodes.on(1, |rig| rig.ask(MapRequest::open(own, write)).result);
        assert_eq!(opened, Err(ErrorCode::InUse), "write: {write}");
    }
    let lineage = nodes.rigs[1].fresh();
    let snapshot = CatalogueRequest::Snapshot {
        volume: name("v"),
        name: name("s"),
        lineage,
        created: 0,
        labels: Labels::default(),
    };
    let resize = |size| CatalogueRequest::Resize {
        name: name("v"),
        size,
        force: true,
    };
    let why = (ErrorCode::InUse, "`v` is in use on node0".to_owned());
    for request in [snapshot.clone(), resize(512), resize(2 << 20), remove("v")] {
        assert_eq!(
            nodes.on(1, |rig| refusal(rig, request.clone())),
            why,
            "{request:?}"
        );
    }
    // The owner has noticed nothing.
    nodes.on(0, |rig| rig.flush(handle)).unwrap();
    nodes.on(0, |rig| rig.close(handle));
    nodes.on(1, |rig| rig.entry(snapshot));
    let handle = nodes.on(1, |rig| rig.open(own, true));
    assert_eq!(nodes.on(1, |rig| rig.read(handle, 1)), 7);
    let opened = nodes.on(0, |rig| rig.ask(MapRequest::open(own, true)).result);
    assert_eq!(opened, Err(ErrorCode::InUse), "the other way round");
}

#[test]
fn a_declared_takeover_takes_a_volume_and_ends_its_owner() {
    let (mut nodes, own, handle) = Nodes::with_a_dead_owner();
    let next = nodes.on(2, |rig| rig.open(own, true));
    assert_eq!(nodes.on(2, |rig| rig.read(next, 1)), 7);
    // What the first one sends is refused: to the log, the head, the catalogue.
    nodes.on(0, |rig| rig.write(own, handle, 2, 8));
    assert_eq!(nodes.on(0, |rig| rig.flush(handle)), Err(ErrorCode::Stale));
    assert_eq!(
        nodes.on(0, |rig| rig.op(MapOp::Close, handle, 0).result),
        Err(ErrorCode::Stale)
    );
    let late = nodes.on(0, |rig| {
        let lineage = rig.fresh();
        rig.refused(volume("late", lineage))
    });
    assert_eq!(late, ErrorCode::Stale);
    assert_eq!(
        nodes.on(0, |rig| rig.refused(lookup("v"))),
        ErrorCode::Stale
    );
    assert_eq!(nodes.on(1, names), ["v"]);
    // Started again, it is a node like any other.
    nodes.restart(0);
    let opened = nodes.on(0, |rig| rig.ask(MapRequest::open(own, true)).result);
    assert_eq!(opened, Err(ErrorCode::InUse));
}

#[test]
fn one_of_two_recoveries_wins_before_anything_is_written() {
    let (mut nodes, own, _handle) = Nodes::with_a_dead_owner();
    // The first one has read the head, and would go on to take the volume.
    nodes.rigs[1].stalled = true;
    let late = nodes.on(1, |rig| {
        let late = rig.send(MapRequest::open(own, true));
        for op in [ObjectOp::Read, ObjectOp::ReadSwapped, ObjectOp::Read] {
            rig.step(op, None);
        }
        late
    });
    let next = nodes.on(2, |rig| rig.open(own, true));
    nodes.on(2, |rig| rig.write(own, next, 1, 9));
    nodes.on(2, |rig| rig.flush(next)).unwrap();
    let before = nodes.pool.log.len();
    nodes.rigs[1].stalled = false;
    let opened = nodes.on(1, |rig| {
        rig.run();
        rig.reply(late).unwrap().result
    });
    assert_eq!(opened, Err(ErrorCode::InUse));
    for op in [ObjectOp::Seal, ObjectOp::Append, ObjectOp::Write] {
        for kind in [ObjectKind::Log, ObjectKind::Data, ObjectKind::Pack] {
            assert_eq!(
                nodes.pool.count(before, op, kind),
                0,
                "{op:?} of a {kind:?}"
            );
        }
    }
    assert_eq!(nodes.on(2, |rig| rig.read(next, 1)), 9);
    nodes.on(2, |rig| rig.flush(next)).unwrap();
}

#[test]
fn a_volume_that_is_removed_while_another_node_opens_it_is_deleted_once_it_is_closed() {
    for opens_first in [true, false] {
        let mut nodes = Nodes::new(2);
        let own = nodes.on(0, |rig| rig.create("v", 1 << 20, ObjectSize::MIN));
        nodes.rigs[1].stalled = true;
        let opening = nodes.on(1, |rig| {
            let opening = rig.send(MapRequest::open(own, true));
            rig.step(ObjectOp::Read, None);
            if !opens_first {
                return opening;
            }
            // Up to the swap, which is not carried out yet.
            rig.step(ObjectOp::ReadSwapped, None);
            rig.step(ObjectOp::Stat, None);
            rig.step(ObjectOp::Write, None);
            rig.step(ObjectOp::Sync, None);
            opening
        });
        assert_eq!(
            nodes.on(0, |rig| rig.control(remove("v"))),
            CatalogueReply::Done
        );
        nodes.rigs[1].stalled = false;
        let opened = nodes.on(1, |rig| {
            rig.run();
            rig.reply(opening).unwrap().result
        });
        assert_eq!(opened, Err(ErrorCode::NotFound), "{opens_first}");
        assert_eq!(nodes.rigs[1].mapper.sessions(), 0);
        assert_eq!(nodes.on(1, names), [""; 0]);
    }
}

#[test]
fn a_removed_volume_is_kept_while_nobody_knows_who_has_it_open() {
    for fault in [None, Some(ErrorCode::Io), Some(ErrorCode::Unavailable)] {
        let mut nodes = Nodes::new(2);
        let own = nodes.on(0, |rig| {
            let own = rig.create("v", 1 << 20, ObjectSize::MIN);
            let handle = rig.open(own, true);
            rig.close(handle);
            own
        });
        // Removed by a node that had found it free, just before another one opened it.
        nodes.rigs[0].stalled = true;
        let removal = nodes.on(0, |rig| {
            let removal = rig.send_control(remove("v"));
            rig.step(ObjectOp::Read, None);
            rig.step(ObjectOp::ReadSwapped, None);
            removal
        });
        let handle = nodes.on(1, |rig| rig.open(own, true));
        nodes.on(1, |rig| rig.write(own, handle, 1, 7));
        let read_catalogue = |rig: &mut Rig| {
            while rig.waits_for(ObjectOp::Read) {
                rig.step(ObjectOp::Read, None);
            }
        };
        nodes.on(0, |rig| {
            read_catalogue(rig);
            rig.step(ObjectOp::Append, None);
            assert_eq!(rig.control_reply(removal), CatalogueReply::Done);
            // Its collection asks who has it.
            read_catalogue(rig);
            rig.step(ObjectOp::ReadSwapped, fault);
            rig.stalled = false;
            rig.run();
        });
        let kept = nodes.on(1, |rig| (rig.flush(handle), rig.read(handle, 1)));
        assert_eq!(kept, (Ok(0), 7), "{fault:?}");
        assert!(nodes.pool.holds(own));
    }
}

#[test]
fn a_node_that_stops_is_gone_and_what_it_had_is_free() {
    let mut nodes = Nodes::new(2);
    let import = nodes.on(0, |rig| rig.import("i"));
    nodes.on(0, |rig| {
        rig.mapper.leave();
        rig.run();
        assert!(rig.mapper.is_idle());
        assert_eq!(rig.refused(lookup("i")), ErrorCode::Unavailable);
    });
    nodes.restart(1);
    assert_eq!(
        nodes.on(1, |rig| rig.refused(lookup("i"))),
        ErrorCode::NotFound
    );
    assert!(!nodes.pool.holds(import));
}

#[test]
fn mappers_of_one_process_take_nothing_from_each_other_and_all_from_an_earlier_one() {
    let mut threads = Nodes::new(0).two_threads();
    let volume = threads.on(0, |rig| rig.create("v", 1 << 20, ObjectSize::MIN));
    let session = threads.on(0, |rig| rig.open(volume, true));
    threads.on(0, |rig| {
        rig.write(volume, session, 1, 1);
        rig.flush(session).unwrap();
    });
    let import = threads.on(1, |rig| rig.import("import"));
    for thread in [0, 1] {
        let seen = threads.on(thread, |rig| rig.entry(lookup("import")).lineage);
        assert_eq!(seen, import, "thread {thread}");
        assert_eq!(threads.on(thread, names), ["v"], "thread {thread}");
    }
    let refused = threads.on(1, |rig| rig.ask(MapRequest::open(volume, true)).result);
    assert_eq!(refused, Err(ErrorCode::InUse));
    let refused = threads.on(1, |rig| refusal(rig, remove("v")).0);
    assert_eq!(refused, ErrorCode::InUse);
    // The process is killed, and has a successor.
    let mut threads = threads.two_threads();
    let session = threads.on(1, |rig| rig.open(volume, true));
    assert_eq!(threads.on(1, |rig| rig.read(session, 1)), 1);
    for thread in [0, 1] {
        let ended = threads.on(thread, |rig| refusal(rig, lookup("import")).0);
        assert_eq!(ended, ErrorCode::NotFound, "thread {thread}");
    }
}
