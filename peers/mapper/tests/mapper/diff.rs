//! Ranges in which maps differ, compared with what is read of them.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::diff::{ChangedRange, DiffPage};
use archipelago_protocol::{ErrorCode, Lineage, ObjectSize};

use crate::rig::{Rig, name, small};

/// Of another leaf of a volume of 4 GiB.
const FAR: u64 = (3 << 30) / 4096;

fn request(text: &str, from: Option<&str>, start: u64, limit: usize) -> CatalogueRequest {
    CatalogueRequest::Diff {
        name: name(text),
        from: from.map(name),
        start,
        limit,
    }
}

fn page(rig: &mut Rig, text: &str, from: Option<&str>, start: u64, limit: usize) -> DiffPage {
    match rig.control(request(text, from, start, limit)) {
        CatalogueReply::Diff(page) => page,
        other => panic!("{other:?}"),
    }
}

/// All ranges, in pages of `limit`: first block, blocks, and whether they are zeros.
fn diff(rig: &mut Rig, text: &str, from: Option<&str>, limit: usize) -> Vec<(u64, u64, bool)> {
    let mut all: Vec<ChangedRange> = Vec::new();
    let mut start = Some(0);
    while let Some(at) = start {
        let found = page(rig, text, from, at, limit);
        assert!(found.ranges.len() <= limit);
        all.extend(found.ranges);
        start = found.next;
    }
    let blocks = all
        .iter()
        .map(|range| (range.offset / 4096, range.len / 4096, range.zero));
    blocks.collect()
}

/// A volume with snapshots `a` and `b`, changed since.
fn volume() -> (Rig, Lineage, u32) {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 4 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    for block in [0, 1, 2, 3, 1023, 1024, FAR] {
        rig.write(own, handle, block, 1);
    }
    rig.flush(handle).unwrap();
    rig.snapshot(handle, "v", "a");
    for block in [1, 2, 1023, 1024, 5000] {
        rig.write(own, handle, block, 2);
    }
    rig.zero(handle, FAR, 1).result.unwrap();
    rig.flush(handle).unwrap();
    rig.snapshot(handle, "v", "b");
    rig.write(own, handle, 7, 3);
    (rig, own, handle)
}

#[test]
fn what_differs_is_listed_whatever_the_pages() {
    let (mut rig, _own, handle) = volume();
    for limit in [1, 2, 3, 100] {
        let since_a = [
            (1, 2, false),
            (1023, 2, false),
            (5000, 1, false),
            (FAR, 1, true),
        ];
        assert_eq!(diff(&mut rig, "b", Some("a"), limit), since_a, "{limit}");
        let live = [
            (1, 2, false),
            (7, 1, false),
            (1023, 2, false),
            (5000, 1, false),
            (FAR, 1, true),
        ];
        assert_eq!(diff(&mut rig, "v", Some("a"), limit), live, "{limit}");
        assert_eq!(diff(&mut rig, "v", Some("b"), limit), [(7, 1, false)]);
        let mapped = [(0, 4, false), (1023, 2, false), (FAR, 1, false)];
        assert_eq!(diff(&mut rig, "a", None, limit), mapped, "{limit}");
        assert_eq!(diff(&mut rig, "a", Some("a"), limit), []);
    }
    // Backwards: what has come since reads as zeros.
    let back = [
        (1, 2, false),
        (1023, 2, false),
        (5000, 1, true),
        (FAR, 1, false),
    ];
    assert_eq!(diff(&mut rig, "a", Some("b"), 2), back);
    rig.flush(handle).unwrap();
    rig.close(handle);
    rig.restart();
    assert_eq!(diff(&mut rig, "v", Some("b"), 2), [(7, 1, false)]);
}

#[test]
fn a_page_begins_where_it_is_asked_for_and_ends_with_the_volume() {
    let (mut rig, _own, _handle) = volume();
    let from = |rig: &mut Rig, start| page(rig, "b", Some("a"), start, 1).ranges[0].offset / 4096;
    assert_eq!(from(&mut rig, 2 * 4096), 2, "in the middle of a range");
    assert_eq!(from(&mut rig, 3 * 4096), 1023);
    assert_eq!(from(&mut rig, 1024 * 4096), 1024);
    assert_eq!(from(&mut rig, 6000 * 4096), FAR);
    assert_eq!(
        page(&mut rig, "b", Some("a"), (FAR + 1) * 4096, 1).ranges,
        []
    );
    // The last block of a volume whose size is no multiple of a block.
    let odd = rig.create("odd", 8192 - 512, ObjectSize::DEFAULT);
    let handle = rig.open(odd, true);
    rig.write(odd, handle, 1, 1);
    let found = page(&mut rig, "odd", None, 0, 1);
    let range = ChangedRange {
        offset: 4096,
        len: 4096 - 512,
        zero: false,
    };
    assert_eq!((found.ranges, found.next), (vec![range], None));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let (mut rig, _own, _handle) = volume();
    rig.create("small", 1 << 20, ObjectSize::MIN);
    for (text, from, code) in [
        ("v", "v", ErrorCode::Invalid),
        ("small", "a", ErrorCode::Invalid),
        ("v", "nothing", ErrorCode::NotFound),
        ("nothing", "a", ErrorCode::NotFound),
    ] {
        assert_eq!(
            rig.refused(request(text, Some(from), 0, 1)),
            code,
            "{text}, {from}"
        );
    }
}

#[test]
fn the_pages_that_are_read_are_those_that_differ() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 64 << 30, ObjectSize::DEFAULT);
    let handle = rig.open(own, true);
    let leaf = (2 << 30) / 4096;
    for number in 0..32 {
        rig.write(own, handle, number * leaf, 1);
    }
    rig.flush(handle).unwrap();
    rig.snapshot(handle, "v", "a");
    for number in [3, 20] {
        rig.write(own, handle, number * leaf + 9, 2);
    }
    rig.flush(handle).unwrap();
    rig.snapshot(handle, "v", "b");
    rig.close(handle);
    rig.restart();
    let before = rig.mapper.counters().pages_read;
    let found = diff(&mut rig, "b", Some("a"), 100);
    assert_eq!(found, [(3 * leaf + 9, 1, false), (20 * leaf + 9, 1, false)]);
    // Of both maps a root and two leaves of 32.
    assert_eq!(rig.mapper.counters().pages_read - before, 2 * 3);
    // A page that starts behind the first leaf does not read it.
    let before = rig.mapper.counters().pages_read;
    page(&mut rig, "b", Some("a"), 4 * leaf * 4096, 100);
    assert_eq!(rig.mapper.counters().pages_read - before, 2 * 2);
}
