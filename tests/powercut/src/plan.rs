//! What the guest does to its files, from a seed: known to the guest, which does it, and to the host, which validates it.
//!
//! Invariants
//! - A step depends on the seed, its number and the files before it: nothing that a machine adds.
//! - Content says by which step it was written and where in its file it belongs, eight bytes at a time.
//! - A step is over when all of it was synced: with [`Sync`] by file and directory, or of the whole file system.

use std::collections::BTreeMap;

use archipelago_doubles::simulated::Random;

/// Directories `d0`..., and the files `f0`... of each.
pub const DIRECTORIES: u8 = 4;
const FILES: u8 = 6;
const NAMES: u64 = (DIRECTORIES * FILES) as u64;
/// Longest file.
const LEN_MAX: u64 = 160 << 10;
/// Most bytes of a write: some are small, a few are larger than what a flush carries in the log (64 KiB).
const WRITE_MAX: u64 = 96 << 10;

/// A file's name, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub u8);

impl Name {
    /// All that there may be.
    pub fn all() -> impl Iterator<Item = Name> {
        (0..DIRECTORIES * FILES).map(Name)
    }

    /// Its directory.
    #[must_use]
    pub fn directory(self) -> String {
        format!("d{}", self.0 / FILES)
    }

    /// Its path below the root.
    #[must_use]
    pub fn path(self) -> String {
        format!("{}/f{}", self.directory(), self.0 % FILES)
    }

    /// Path of a file that is about to become this one.
    #[must_use]
    pub fn temporary(self) -> String {
        format!("{}/new", self.directory())
    }
}

/// The files that there are.
pub type Files = BTreeMap<Name, Vec<u8>>;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Makes a file of `len` bytes.
    Create {
        /// Which.
        name: Name,
        /// Its length.
        len: usize,
    },
    /// Writes `len` bytes at `at`, which is not behind the end: over what is there, or behind it.
    Write {
        /// Which.
        name: Name,
        /// Where.
        at: usize,
        /// How much.
        len: usize,
    },
    /// Makes a file shorter.
    Truncate {
        /// Which.
        name: Name,
        /// Its new length.
        len: usize,
    },
    /// Puts a new file in the place of an old one: written beside it, synced, renamed.
    Replace {
        /// Which.
        name: Name,
        /// Its new length.
        len: usize,
    },
    /// Gives a file another name, whose file, if there is one, goes.
    Rename {
        /// The old name.
        from: Name,
        /// The new name.
        to: Name,
    },
    /// Removes a file.
    Remove {
        /// Which.
        name: Name,
    },
}

/// How a step makes what it did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// `fsync` of the file and of its directories.
    Files,
    /// `syncfs`.
    All,
}

/// One step of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its number, from 1.
    pub number: u32,
    /// What it does.
    pub action: Action,
    /// How it ends.
    pub sync: Sync,
}

/// Bytes `at..at + len` of a file that step `number` writes.
#[must_use]
pub fn content(number: u32, at: usize, len: usize) -> Vec<u8> {
    let words = at / 8..(at + len).div_ceil(8);
    let bytes = words.flat_map(|word| (u64::from(number) << 32 | word as u64).to_le_bytes());
    bytes.skip(at % 8).take(len).collect()
}

/// The steps of a seed, one after the other.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    number: u32,
    files: Files,
}

impl Plan {
    /// The plan of `seed`; there are no files yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Plan {
            seed,
            number: 0,
            files: Files::new(),
        }
    }

    /// The files after the steps so far.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The last step's number; 0: none.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The next step, done to [`Plan::files`].
    pub fn advance(&mut self) -> Step {
        self.number += 1;
        let mut random = Random::new(self.seed ^ u64::from(self.number) << 32);
        let sync = if random.below(5) == 0 {
            Sync::All
        } else {
            Sync::Files
        };
        let step = Step {
            number: self.number,
            action: choose(&self.files, &mut random),
            sync,
        };
        apply(&mut self.files, &step);
        step
    }
}

fn small(number: u64) -> usize {
    usize::try_from(number).expect("files are small")
}

/// A length below `bound`: halved up to this many times, so that most are short.
fn length(random: &mut Random, bound: u64) -> usize {
    let bound = bound >> random.below(10);
    1 + small(random.below(bound.max(2)))
}

fn choose(files: &Files, random: &mut Random) -> Action {
    let name = Name(u8::try_from(random.below(NAMES)).expect("few names"));
    let Some(old) = files.get(&name) else {
        let len = length(random, WRITE_MAX);
        return Action::Create { name, len };
    };
    let end = old.len();
    match random.below(10) {
        0..3 => {
            let at = small(random.below(end as u64));
            let len = length(random, WRITE_MAX).min(end - at);
            Action::Write { name, at, len }
        }
        3..5 if (end as u64) < LEN_MAX => {
            let len = length(random, WRITE_MAX);
            Action::Write { name, at: end, len }
        }
        5 => {
            let len = small(random.below(end as u64));
            // A file has a byte at least, so that there is something to write over.
            Action::Truncate {
                name,
                len: len.max(1),
            }
        }
        6 | 7 => {
            let len = length(random, WRITE_MAX);
            Action::Replace { name, len }
        }
        8 => {
            let to = Name(u8::try_from(random.below(NAMES)).expect("few names"));
            if to == name {
                return Action::Remove { name };
            }
            Action::Rename { from: name, to }
        }
        _ => Action::Remove { name },
    }
}

fn apply(files: &mut Files, step: &Step) {
    let number = step.number;
    match step.action {
        Action::Create { name, len } | Action::Replace { name, len } => {
            files.insert(name, content(number, 0, len));
        }
        Action::Write { name, at, len } => {
            let file = files.entry(name).or_default();
            let end = file.len().max(at + len);
            file.resize(end, 0);
            file[at..at + len].copy_from_slice(&content(number, at, len));
        }
        Action::Truncate { name, len } => files.entry(name).or_default().truncate(len),
        Action::Rename { from, to } => {
            let file = files.remove(&from).unwrap_or_default();
            files.insert(to, file);
        }
        Action::Remove { name } => drop(files.remove(&name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_everything_and_every_action_occurs() {
        let steps = |seed| {
            let mut plan = Plan::new(seed);
            (0..500).map(|_| plan.advance()).collect::<Vec<_>>()
        };
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
        let all = steps(3);
        let count = |is: fn(&Action) -> bool| all.iter().filter(|step| is(&step.action)).count();
        assert!(count(|action| matches!(action, Action::Write { .. })) > 50);
        assert!(count(|action| matches!(action, Action::Replace { .. })) > 20);
        assert!(count(|action| matches!(action, Action::Rename { .. })) > 10);
        assert!(count(|action| matches!(action, Action::Truncate { .. })) > 10);
        assert!(count(|action| matches!(action, Action::Remove { .. })) > 10);
    }

    #[test]
    fn content_does_not_depend_on_the_pieces_it_is_written_in() {
        let whole = content(7, 0, 100);
        assert_eq!(content(7, 13, 40), whole[13..53]);
        assert_eq!(whole[8..16], (7u64 << 32 | 1).to_le_bytes());
    }
}
