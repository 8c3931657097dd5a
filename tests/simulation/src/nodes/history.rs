//! One history: an order of all operations, each at one moment between its call and its answer, that explains every answer.
//!
//! An operation without an answer, or with one that does not say whether it was done, has happened at some moment after its call, or
//! never. The search is exhaustive: runs are short.

use std::collections::{BTreeMap, BTreeSet};

/// What stands for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

/// The catalogue: what each name stands for.
pub type Names = BTreeMap<char, (u128, Kind)>;

/// What a node asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A new volume of this lineage.
    Create(char, u128),
    /// The first one's clone.
    Clone(char, char, u128),
    /// The first one's snapshot.
    Snapshot(char, char, u128),
    /// Another name.
    Rename(char, char),
    /// No name any more.
    Remove(char),
    /// What it stands for.
    Lookup(char),
    /// All of them.
    List,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The entry that was asked for, or made.
    Entry(u128),
    /// It is done.
    Done,
    /// All there is.
    All(Names),
    /// There is no such name.
    NotFound,
    /// The name is taken.
    Exists,
    /// Not of such a thing.
    Invalid,
    /// It was refused for the moment, and nothing was done.
    Busy,
    /// Nobody knows whether it was done.
    Unknown,
}

/// An operation, when it was called and when it was answered.
#[derive(Debug, Clone)]
pub struct Called {
    /// What was asked.
    pub op: Op,
    /// What was answered.
    pub answer: Answer,
    /// When it was called.
    pub from: u64,
    /// When it was answered; of an unknown end: never.
    pub until: u64,
}

/// What `op` does to `names`, and the answer.
fn apply(names: &mut Names, op: Op) -> Answer {
    let put = |names: &mut Names, name: char, what: (u128, Kind)| match names.contains_key(&name) {
        true => Answer::Exists,
        false => {
            names.insert(name, what);
            Answer::Entry(what.0)
        }
    };
    match op {
        Op::Create(name, lineage) => put(names, name, (lineage, Kind::Volume)),
        Op::Clone(source, name, lineage) => match names.get(&source) {
            None => Answer::NotFound,
            Some((_, Kind::Volume)) => Answer::Invalid,
            Some(_) => put(names, name, (lineage, Kind::Volume)),
        },
        Op::Snapshot(volume, name, lineage) => match names.get(&volume) {
            None => Answer::NotFound,
            Some((_, Kind::Snapshot)) => Answer::Invalid,
            Some(_) => put(names, name, (lineage, Kind::Snapshot)),
        },
        Op::Rename(from, to) => match names.get(&from).copied() {
            None => Answer::NotFound,
            Some(_) if from != to && names.contains_key(&to) => Answer::Exists,
            Some(what) => {
                names.remove(&from);
                names.insert(to, what);
                Answer::Entry(what.0)
            }
        },
        Op::Remove(name) => match names.remove(&name) {
            None => Answer::NotFound,
            Some(_) => Answer::Done,
        },
        Op::Lookup(name) => match names.get(&name) {
            None => Answer::NotFound,
            Some((lineage, _)) => Answer::Entry(*lineage),
        },
        Op::List => Answer::All(names.clone()),
    }
}

/// Whether `called` are one history that ends with `last`.
#[must_use]
pub fn is_one(called: &[Called], last: &Names) -> bool {
    assert!(called.len() <= 64, "a bit for each");
    let mut search = Search {
        called,
        last,
        seen: BTreeSet::new(),
    };
    search.go(0, &Names::new())
}

struct Search<'a> {
    called: &'a [Called],
    last: &'a Names,
    /// Operations that are behind us, and what they made: no way from there.
    seen: BTreeSet<(u64, Names)>,
}

impl Search<'_> {
    fn go(&mut self, done: u64, names: &Names) -> bool {
        if !self.seen.insert((done, names.clone())) {
            return false;
        }
        let left = (0..self.called.len()).filter(|index| done & 1 << index == 0);
        let left: Vec<usize> = left.collect();
        let certain = |index: &usize| self.called[*index].answer != Answer::Unknown;
        if !left.iter().any(certain) && names == self.last {
            return true;
        }
        // Whatever was answered before another one was called comes before it.
        let first_end = left.iter().map(|index| self.called[*index].until).min();
        for index in left {
            let Called {
                op, answer, from, ..
            } = self.called[index].clone();
            if first_end.is_some_and(|end| end < from) {
                continue;
            }
            let next = done | 1 << index;
            if answer == Answer::Busy {
                if self.go(next, names) {
                    return true;
                }
                continue;
            }
            let mut then = names.clone();
            let comes_to = apply(&mut then, op);
            if (answer == Answer::Unknown || comes_to == answer) && self.go(next, &then) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(op: Op, answer: Answer, from: u64, until: u64) -> Called {
        Called {
            op,
            answer,
            from,
            until,
        }
    }

    #[test]
    fn what_no_order_explains_is_not_one_history() {
        let of = |list: &[(char, u128)]| -> Names {
            list.iter()
                .map(|(name, lineage)| (*name, (*lineage, Kind::Volume)))
                .collect()
        };
        let create = |from, until| called(Op::Create('a', 1), Answer::Entry(1), from, until);
        let look = |answer, from, until| called(Op::Lookup('a'), answer, from, until);
        // Side by side either may be first; one after the other only one.
        for (from, explained) in [(1, true), (4, false)] {
            let calls = [create(0, 3), look(Answer::NotFound, from, 5)];
            assert_eq!(is_one(&calls, &of(&[('a', 1)])), explained);
        }
        // Lost, made twice, and never answered.
        assert!(!is_one(&[create(0, 1)], &of(&[])));
        let twice = [
            create(0, 1),
            called(Op::Create('a', 2), Answer::Entry(2), 2, 3),
        ];
        assert!(!is_one(&twice, &of(&[('a', 2)])));
        let maybe = called(Op::Rename('a', 'b'), Answer::Unknown, 2, u64::MAX);
        for end in [of(&[('a', 1)]), of(&[('b', 1)])] {
            assert!(is_one(&[create(0, 1), maybe.clone()], &end));
        }
        // It has happened before somebody saw it, or not: not both.
        let saw = [
            create(0, 1),
            maybe,
            look(Answer::NotFound, 3, 4),
            look(Answer::Entry(1), 5, 6),
        ];
        assert!(!is_one(&saw, &of(&[('b', 1)])));
    }
}
