//! Snapshots of open volumes that were promised to control: their names are reserved until they are made or given up.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use archipelago_protocol::{ErrorCode, Lineage};

use super::names::Names;
use super::record::SnapshotFields;

/// A promised snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PreparedSnapshot {
    pub(crate) volume: Lineage,
    pub(crate) snapshot: SnapshotFields,
}

impl PreparedSnapshot {
    fn release(&self, names: &mut Names) {
        names.release(&self.snapshot.name, self.snapshot.lineage);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Promised,
    /// The volume has frozen its map.
    Begun,
}

/// All promised snapshots, by the token that control was given.
#[derive(Debug, Default)]
pub(super) struct PreparedSnapshots {
    by_token: RefCell<BTreeMap<u64, (PreparedSnapshot, Stage)>>,
    /// How many tokens were given.
    tokens: Cell<u64>,
}

impl PreparedSnapshots {
    /// Reserves name and lineage; the token. No mapper of an older `generation` gave the same.
    pub(super) fn add(
        &self,
        names: &mut Names,
        generation: u64,
        prepared: PreparedSnapshot,
    ) -> u64 {
        let PreparedSnapshot { snapshot, .. } = &prepared;
        names.reserve(snapshot.name.clone(), snapshot.lineage);
        self.tokens.set(self.tokens.get() + 1);
        let token = generation << 32 | self.tokens.get();
        let mut by_token = self.by_token.borrow_mut();
        by_token.insert(token, (prepared, Stage::Promised));
        token
    }

    /// The snapshot of `token`, whatever its stage.
    pub(super) fn get(&self, token: u64) -> Option<PreparedSnapshot> {
        let prepared = self.by_token.borrow();
        prepared.get(&token).map(|(snapshot, _)| snapshot.clone())
    }

    /// `volume` begins the snapshot of `token`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]: there is none of this volume. [`ErrorCode::InUse`]: it was begun before.
    pub(super) fn begin(&self, token: u64, volume: Lineage) -> Result<(), ErrorCode> {
        let mut prepared = self.by_token.borrow_mut();
        match prepared.get_mut(&token) {
            Some((snapshot, stage)) if snapshot.volume == volume => match stage {
                Stage::Promised => {
                    *stage = Stage::Begun;
                    Ok(())
                }
                Stage::Begun => Err(ErrorCode::InUse),
            },
            _ => Err(ErrorCode::NotFound),
        }
    }

    /// Forgets the snapshot of `token`, made or given up.
    pub(super) fn end(&self, names: &mut Names, token: u64) {
        if let Some((prepared, _)) = self.by_token.borrow_mut().remove(&token) {
            prepared.release(names);
        }
    }

    /// Forgets what was promised of `volume` and never begun.
    pub(super) fn forget(&self, names: &mut Names, volume: Lineage) {
        let mut prepared = self.by_token.borrow_mut();
        prepared.retain(|_, (snapshot, stage)| {
            let stays = snapshot.volume != volume || *stage == Stage::Begun;
            if !stays {
                snapshot.release(names);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Labels;

    use super::*;

    #[test]
    fn a_name_is_reserved_until_its_snapshot_is_made_or_given_up() {
        let (prepared, mut names) = (PreparedSnapshots::default(), Names::default());
        let snapshot = |name: &str, volume| PreparedSnapshot {
            volume: Lineage(volume),
            snapshot: SnapshotFields {
                name: name.parse().unwrap(),
                lineage: Lineage(100 + volume),
                created: 0,
                labels: Labels::default(),
            },
        };
        let (a, b) = (snapshot("a", 1), snapshot("b", 2));
        let token_a = prepared.add(&mut names, 3, a.clone());
        let token_b = prepared.add(&mut names, 3, b.clone());
        assert_eq!([token_a, token_b], [3 << 32 | 1, 3 << 32 | 2]);
        assert!(names.is_taken(&a.snapshot.name) && names.is_used(b.snapshot.lineage));
        assert_eq!(
            prepared.begin(token_a, Lineage(2)),
            Err(ErrorCode::NotFound)
        );
        assert_eq!(prepared.begin(token_a, Lineage(1)), Ok(()));
        assert_eq!(prepared.begin(token_a, Lineage(1)), Err(ErrorCode::InUse));
        // One that was begun stays until its end.
        prepared.forget(&mut names, Lineage(1));
        prepared.forget(&mut names, Lineage(2));
        assert!(names.is_taken(&a.snapshot.name) && !names.is_taken(&b.snapshot.name));
        assert_eq!(
            (prepared.get(token_a), prepared.get(token_b)),
            (Some(a.clone()), None)
        );
        prepared.end(&mut names, token_a);
        assert!(!names.is_taken(&a.snapshot.name) && prepared.get(token_a).is_none());
    }
}
