//! Random work against a plain array, with deaths of the process, power cuts and vanished clients in between.
//!
//! A power cut may take any subset of unsynced sectors. What was flushed must be there; each block holds what it held at
//! the last flush or something written since; what is read after recovery is what it is from then on.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_mapper::MapperConfig;
use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::status::BlockState;
use archipelago_protocol::{Lineage, ObjectSize};
use proptest::prelude::*;

use crate::rig::{Rig, small};

/// Blocks that are used: in several objects, at both ends of leaves.
const BLOCKS: u64 = 48;
const SIZE: u64 = 1 << 35;

fn place(block: u64, object_size: ObjectSize) -> u64 {
    let leaf = object_size.blocks() * 512;
    let last = SIZE / 4096;
    match block / 16 {
        0 => block % 16,
        1 => leaf - 8 + block % 16,
        _ => last - 16 + block % 16,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64),
    Zero(u64, u64),
    Flush,
    Snapshot,
    Clone,
    Reopen,
    Death,
    PowerCut(u64),
    Vanish,
    Status(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..BLOCKS).prop_map(Step::Write),
        3 => (0..BLOCKS, 1u64..20).prop_map(|(at, len)| Step::Zero(at, len)),
        4 => Just(Step::Flush),
        2 => Just(Step::Snapshot),
        1 => Just(Step::Clone),
        1 => Just(Step::Reopen),
        1 => Just(Step::Death),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::Vanish),
        4 => (0..BLOCKS, 1..BLOCKS).prop_map(|(from, to)| Step::Status(from, to)),
    ]
}

/// What a block may hold after a power cut: its value at the last flush, and those since.
type Expected = BTreeMap<u64, Vec<u64>>;

struct World {
    rig: Rig,
    name: String,
    own: Lineage,
    handle: u32,
    expected: Expected,
    frozen: Vec<(Lineage, BTreeMap<u64, u64>)>,
    stamp: u64,
    object_size: ObjectSize,
}

impl World {
    fn new(object_size: ObjectSize) -> Self {
        let config = MapperConfig {
            cache_bytes: 64 << 10,
            pending_max: 40,
            pack_len_max: 8192,
            ..small()
        };
        let mut rig = Rig::new(config);
        let own = rig.create("v0", SIZE, object_size);
        let handle = rig.open(own, true);
        let expected = (0..BLOCKS).map(|block| (block, vec![0])).collect();
        World {
            rig,
            name: "v0".into(),
            own,
            handle,
            expected,
            frozen: Vec::new(),
            stamp: 0,
            object_size,
        }
    }

    fn now(&self) -> BTreeMap<u64, u64> {
        self.expected
            .iter()
            .map(|(block, values)| (*block, *values.last().unwrap()))
            .collect()
    }

    fn durable(&mut self) {
        self.expected
            .values_mut()
            .for_each(|values| *values = vec![*values.last().unwrap()]);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(block) => {
                self.stamp += 1;
                self.rig.write(
                    self.own,
                    self.handle,
                    place(*block, self.object_size),
                    self.stamp,
                );
                self.expected.get_mut(block).unwrap().push(self.stamp);
            }
            Step::Zero(at, len) => {
                let end = (at / 16 * 16 + 16).min(at + len);
                let first = place(*at, self.object_size);
                self.rig.zero(self.handle, first, end - at).result.unwrap();
                (*at..end).for_each(|block| self.expected.get_mut(&block).unwrap().push(0));
            }
            Step::Flush => {
                self.rig.flush(self.handle).unwrap();
                self.durable();
            }
            Step::Snapshot => {
                let name = format!("s{}", self.frozen.len());
                let lineage = self.rig.snapshot(self.handle, &self.name, &name);
                self.frozen.push((lineage, self.now()));
                self.durable();
            }
            Step::Clone => {
                // A volume peer flushes before it closes.
                self.rig.flush(self.handle).unwrap();
                self.rig.close(self.handle);
                let snapshot = format!("s{}", self.frozen.len());
                let lineage = self.rig.snapshot_closed(&self.name, &snapshot);
                self.frozen.push((lineage, self.now()));
                self.name = format!("v{}", self.frozen.len());
                self.own = self.rig.clone_of(&snapshot, &self.name, None);
                self.handle = self.rig.open(self.own, true);
                self.durable();
            }
            Step::Reopen => {
                // A volume peer flushes before it closes.
                self.rig.flush(self.handle).unwrap();
                self.rig.close(self.handle);
                self.handle = self.rig.open(self.own, true);
                self.durable();
            }
            Step::Death => {
                self.rig.restart();
                self.handle = self.rig.open(self.own, true);
                self.durable();
            }
            Step::Vanish => {
                let gone = self.rig.client;
                self.rig.mapper.client_gone(gone);
                self.rig.client = archipelago_mapper::ClientId(gone.0 + 1);
                self.handle = self.rig.open(self.own, true);
                self.durable();
            }
            Step::Status(from, to) => {
                let (from, to) = (*from.min(to), *from.max(to));
                self.check_status(self.handle, &self.now(), from, to);
            }
            Step::PowerCut(seed) => {
                let mut state = seed | 1;
                self.rig.power_cut(|| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    state >> 63 == 1
                });
                self.handle = self.rig.open(self.own, true);
                for block in 0..BLOCKS {
                    self.settle(block);
                }
            }
        }
    }

    /// After a power cut: the block is one of what it may be, sector by sector.
    fn settle(&mut self, block: u64) {
        let allowed = self.expected[&block].clone();
        let sectors = self
            .rig
            .sectors(self.handle, place(block, self.object_size));
        for found in &sectors {
            assert!(
                allowed.contains(found),
                "block {block}: {found} is none of {allowed:?}"
            );
        }
        if sectors.iter().any(|sector| *sector != sectors[0]) {
            // Torn: written anew, so that a block is one value again.
            self.step(&Step::Write(block));
        } else {
            self.expected.insert(block, vec![sectors[0]]);
        }
    }

    /// From block `from` to block `to`: what holds a value is data, everything else is a hole.
    fn check_status(&mut self, handle: u32, content: &BTreeMap<u64, u64>, from: u64, to: u64) {
        let places = [from, to].map(|block| place(block, self.object_size));
        let mut at = places[0];
        let data: BTreeSet<u64> = content
            .iter()
            .filter(|(_, value)| **value != 0)
            .map(|(block, _)| place(*block, self.object_size))
            .filter(|block| (places[0]..=places[1]).contains(block))
            .collect();
        let mut found = BTreeSet::new();
        for (blocks, state) in self.rig.status(handle, at, places[1] + 1 - at) {
            if state == BlockState::Data {
                found.extend(at..at + blocks);
            }
            at += blocks;
        }
        assert_eq!(found, data, "from {} to {}", places[0], places[1]);
    }

    fn check(&mut self) {
        self.check_status(self.handle, &self.now(), 0, BLOCKS - 1);
        for (block, value) in self.now() {
            let found = self.rig.read(self.handle, place(block, self.object_size));
            assert_eq!(found, value, "block {block}");
        }
        for (lineage, content) in self.frozen.clone() {
            let handle = self.rig.open(lineage, false);
            self.check_status(handle, &content, 0, BLOCKS - 1);
            for (block, value) in content {
                let found = self.rig.read(handle, place(block, self.object_size));
                assert_eq!(found, value, "block {block} of {lineage}");
            }
            self.rig.close(handle);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn a_volume_is_an_array_that_survives(log2 in 16u8..=25, steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(ObjectSize::from_log2(log2).unwrap());
        for step in &steps {
            world.step(step);
        }
        world.check();
        world.step(&Step::Flush);
        world.step(&Step::PowerCut(0));
        world.check();
        let name = world.name.parse().unwrap();
        world.rig.close(world.handle);
        world.rig.control(CatalogueRequest::Remove { name });
    }
}
