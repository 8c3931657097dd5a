//! How full a pool's file system is, in levels.
//!
//! Invariant: a level ends only well below the value at which it begins, so that a pool near that value does not cause many log lines.

use std::fmt;

use archipelago_api::pools::{Inodes, PoolSpace, SpaceLevel};
use archipelago_blocker_file::Room;

/// The percentage in use at which a level begins, the fullest first.
const LEVELS: [(u8, SpaceLevel); 3] = [
    (95, SpaceLevel::Used95),
    (90, SpaceLevel::Used90),
    (80, SpaceLevel::Used80),
];
/// A level ends when the percentage in use is this much below its own.
const HYSTERESIS_PERCENT: u8 = 2;
/// A file system with less free space than this is full: guests write in pieces of this size.
const FULL_BELOW: u64 = 1 << 20;
/// A small file system is full when less than this part of it is free.
const FULL_BELOW_PART: u64 = 256;
/// A file system is not full any more when so many times as much is free.
const HYSTERESIS_FULL: u64 = 2;

/// A resource of a file system that may run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Bytes,
    Inodes,
}

/// A level, and the resource that has reached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    level: SpaceLevel,
    resource: Resource,
}

/// The change since the last measurement, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A fuller level has begun.
    Rose,
    /// A level has ended.
    Fell,
}

/// The level of one file system.
#[derive(Debug)]
pub(crate) struct Gauge {
    level: SpaceLevel,
}

impl Default for Gauge {
    fn default() -> Self {
        Gauge {
            level: SpaceLevel::Ok,
        }
    }
}

fn percent(used: u64, free: u64) -> u8 {
    let (used, all) = (u128::from(used), u128::from(used) + u128::from(free));
    // If there is none, none is in use.
    let percent = (used * 100).div_ceil(all.max(1));
    u8::try_from(percent).unwrap_or(100)
}

/// The level of a resource of which `used` percent are in use, or that is `full`.
fn level(used: u8, full: bool) -> SpaceLevel {
    if full {
        return SpaceLevel::Full;
    }
    let reached = LEVELS.iter().find(|(percent, _)| used >= *percent);
    reached.map_or(SpaceLevel::Ok, |(_, level)| *level)
}

/// The level of `room` if `more` percent more were in use, and if it were full with `full_times` as much free.
fn read(room: &Room, more: u8, full_times: u64) -> Reading {
    let full_below = FULL_BELOW.min(room.total / FULL_BELOW_PART) * full_times;
    let used = percent(room.used, room.free).saturating_add(more);
    let bytes = Reading {
        level: level(used, room.free < full_below),
        resource: Resource::Bytes,
    };
    let Some([free, total]) = room.inodes else {
        return bytes;
    };
    let used = percent(total.saturating_sub(free), free).saturating_add(more);
    let inodes = level(used, free < full_times);
    if inodes > bytes.level {
        return Reading {
            level: inodes,
            resource: Resource::Inodes,
        };
    }
    bytes
}

impl Gauge {
    /// Evaluates a measurement of the file system. Returns the space to report, and the change of its level.
    pub(crate) fn look(&mut self, room: &Room) -> (PoolSpace, Option<Change>) {
        let (up, down) = (
            read(room, 0, 1).level,
            read(room, HYSTERESIS_PERCENT, HYSTERESIS_FULL).level,
        );
        let next = up.max(self.level.min(down));
        let change = match next.cmp(&self.level) {
            std::cmp::Ordering::Greater => Some(Change::Rose),
            std::cmp::Ordering::Less => Some(Change::Fell),
            std::cmp::Ordering::Equal => None,
        };
        self.level = next;
        let space = PoolSpace {
            free: room.free,
            total: room.total,
            used_percent: percent(room.used, room.free),
            level: next,
            inodes: room.inodes.map(|[free, total]| Inodes { free, total }),
        };
        (space, change)
    }
}

/// A description of a file system: how full it is, and what to do.
#[derive(Debug)]
pub(crate) struct Described<'a>(pub(crate) &'a PoolSpace);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = self.0;
        let inodes = space.inodes.filter(|inodes| {
            let used = percent(inodes.total.saturating_sub(inodes.free), inodes.free);
            used > space.used_percent
        });
        match (space.level, inodes) {
            (SpaceLevel::Full, None) => {
                write!(f, "its file system is full, {} bytes are free", space.free)
            }
            (SpaceLevel::Full, Some(inodes)) => write!(
                f,
                "its file system is full, {} of {} inodes are free",
                inodes.free, inodes.total
            ),
            (_, None) => write!(
                f,
                "{} % of its file system are used, {} bytes are free",
                space.used_percent, space.free
            ),
            (_, Some(inodes)) => write!(
                f,
                "its file system has {} of {} inodes left",
                inodes.free, inodes.total
            ),
        }
    }
}

/// What to do when a file system fills up.
pub(crate) const WHAT_TO_DO: &str =
    "free space there or grow the file system: without room, writes of guests wait or fail";

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn room(used_percent: u64) -> Room {
        Room {
            free: GIB - GIB / 100 * used_percent,
            used: GIB / 100 * used_percent,
            total: GIB,
            inodes: None,
        }
    }

    #[test]
    fn a_level_is_reached_at_its_value_and_left_two_percent_below() {
        use Change::{Fell, Rose};
        use SpaceLevel::{Full, Ok, Used80, Used90, Used95};
        let mut gauge = Gauge::default();
        for (used, level, change) in [
            (10, Ok, None),
            (79, Ok, None),
            (80, Used80, Some(Rose)),
            (79, Used80, None),
            (80, Used80, None),
            (78, Used80, None),
            (77, Ok, Some(Fell)),
            (96, Used95, Some(Rose)),
            (94, Used95, None),
            (92, Used90, Some(Fell)),
            (100, Full, Some(Rose)),
            (99, Used95, Some(Fell)),
            (0, Ok, Some(Fell)),
        ] {
            let (space, found) = gauge.look(&room(used));
            assert_eq!((space.level, found), (level, change), "{used} % used");
        }
    }

    #[test]
    fn a_full_one_is_full_until_there_is_room_for_some_writes() {
        let mut gauge = Gauge::default();
        for (free, full) in [
            (1 << 20, false),
            ((1 << 20) - 1, true),
            (1 << 20, true),
            ((2 << 20) - 1, true),
            (2 << 20, false),
            (0, true),
        ] {
            let room = Room {
                free,
                used: GIB - free,
                ..room(0)
            };
            let (space, _) = gauge.look(&room);
            assert_eq!(space.level == SpaceLevel::Full, full, "{free} free");
        }
    }

    #[test]
    fn what_is_set_aside_for_root_is_not_free() {
        let room = Room {
            free: 0,
            used: 95 * (GIB / 100),
            ..room(0)
        };
        let (space, change) = Gauge::default().look(&room);
        assert_eq!(
            (space.level, change),
            (SpaceLevel::Full, Some(Change::Rose))
        );
        assert_eq!(space.used_percent, 100);
    }

    #[test]
    fn inodes_count_where_they_are_limited() {
        let look = |free| {
            let room = Room {
                inodes: Some([free, 1000]),
                ..room(10)
            };
            let (space, _) = Gauge::default().look(&room);
            (space.level, Described(&space).to_string())
        };
        assert_eq!(look(900).0, SpaceLevel::Ok);
        let (level, text) = look(100);
        assert_eq!(level, SpaceLevel::Used90);
        assert_eq!(text, "its file system has 100 of 1000 inodes left");
        let (level, text) = look(0);
        assert_eq!(level, SpaceLevel::Full);
        assert!(text.contains("0 of 1000 inodes are free"), "{text}");
    }
}
