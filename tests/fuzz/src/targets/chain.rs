//! The virtqueue's chain walker, and the request in a chain.

use archipelago_protocol::volume::Segment;
use archipelago_vhost_user::chain::{Allowed, CHAIN_MAX, Chain};
use archipelago_vhost_user::config::{RANGE_SECTORS_MAX, RANGES_MAX};
use archipelago_vhost_user::memory::{GuestSlot, MemoryTable};
use archipelago_vhost_user::request::{Limits, Range, Request, parse};
use xseg::{Region, RegionId};

use crate::input::Input;

/// Bytes of guest memory, in two slots beside each other and one at the end of all addresses.
const MEMORY: u64 = 0xc000;
/// Guest address of the first byte.
pub(crate) const GUEST: u64 = 0x1_0000;
const USER: u64 = 0x7000_0000;
/// Bytes of the volume.
const SIZE: u64 = 1 << 20;

thread_local! {
    static GUEST_MEMORY: (Region, MemoryTable) = guest_memory();
}

fn guest_memory() -> (Region, MemoryTable) {
    let region = Region::anonymous(0xc000).expect("memory");
    let mut table = MemoryTable::default();
    for (id, guest, start, len) in [
        (1, GUEST, 0, 0x8000),
        (2, GUEST + 0x8000, 0x8000, 0x3000),
        (3, u64::MAX - 0x1000, 0xb000, 0x1000),
    ] {
        let region = region.clone();
        let slot = GuestSlot {
            guest,
            user: USER + start,
            len,
            region,
            start,
        };
        assert!(!table.overlaps(&slot));
        table.insert(slot, RegionId(id));
    }
    (region, table)
}

/// Memory with a descriptor table at its beginning, and where to begin.
pub(crate) fn chain(bytes: &[u8]) {
    GUEST_MEMORY.with(|(region, table)| walk(bytes, region, table));
}

fn walk(bytes: &[u8], region: &Region, table: &MemoryTable) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let size = 1_u16 << (flags & 7);
    let indirect = if flags & 8 == 0 {
        Allowed::Yes
    } else {
        Allowed::No
    };
    let read_only = flags & 16 != 0;
    let head = input.u16();
    region.fill(0, MEMORY, 0).expect("all of it");
    let memory = input.rest();
    let memory = &memory[..memory.len().min(0xc000)];
    region.write(0, memory).expect("not more than there is");
    let place = table
        .user_place(USER, 16 * u64::from(size))
        .expect("the first slot");

    let mut chain = Chain::new();
    if chain.walk(table, &place, size, head, indirect).is_err() {
        return;
    }
    assert!(chain.readable.len() <= CHAIN_MAX && chain.writable.len() <= CHAIN_MAX);
    assert_eq!(chain.addresses.len(), chain.writable.len());
    inside(table, &chain.readable);
    inside(table, &chain.writable);
    let before = Chain::bytes(&chain.writable);
    let Some((status, _address)) = chain.take_status() else {
        return;
    };
    inside(table, &[status]);
    assert_eq!(Chain::bytes(&chain.writable), before - 1);
    let mut ranges = Vec::new();
    let limits = Limits {
        size: SIZE,
        read_only,
    };
    match parse(&mut chain, table, limits, &mut ranges) {
        Ok(Request::Read { offset, len }) => {
            check_range(offset, len);
            assert_eq!(len, Chain::bytes(&chain.writable));
        }
        Ok(Request::Write { offset, len }) => {
            check_range(offset, len);
            assert_eq!(len, Chain::bytes(&chain.readable));
            assert!(!read_only);
        }
        Ok(Request::Discard | Request::WriteZeroes) => {
            assert!(ranges.len() <= RANGES_MAX && !read_only);
            for Range { offset, len, .. } in ranges {
                check_range(offset, len);
                assert!(len <= u64::from(RANGE_SECTORS_MAX) * 512);
            }
        }
        Ok(Request::Flush | Request::GetId) | Err(_) => {}
    }
    inside(table, &chain.readable);
    inside(table, &chain.writable);
}

fn check_range(offset: u64, len: u64) {
    assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
    assert!(offset + len <= SIZE);
}

/// Each piece lies in the slot that it names.
fn inside(table: &MemoryTable, segments: &[Segment]) {
    for segment in segments {
        let region = table.region(segment.region).expect("a region of the table");
        assert!(
            region.span(segment.offset, u64::from(segment.len)).is_ok(),
            "{segment:?}"
        );
        let (start, len) = match segment.region {
            1 => (0, 0x8000),
            2 => (0x8000, 0x3000),
            _ => (0xb000, 0x1000),
        };
        let end = segment.offset + u64::from(segment.len);
        assert!(segment.offset >= start && end <= start + len, "{segment:?}");
    }
}
