//! Data that maps name, and objects that nothing names.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_protocol::check::FindingKind;
use archipelago_protocol::object::{ObjectId, ObjectKind};
use archipelago_protocol::{BLOCK_SIZE, ErrorCode, Lineage};

use super::Inspection;
use crate::disk::name_of;
use crate::failure::Outcome;

/// What may be deleted: nothing names it and nothing ever will.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    /// Lineages that no entry names, with their objects; pending deletes included.
    pub(super) lineages: BTreeMap<Lineage, u64>,
    /// Former checkpoints and logs of the catalogue.
    pub(super) objects: Vec<ObjectId>,
}

impl Inspection {
    pub(super) async fn list(&mut self) -> Outcome<()> {
        // The lowest id; were there an object with it, it would be the catalogue's and leaked.
        let mut last = ObjectId {
            lineage: Lineage::CATALOGUE,
            kind: ObjectKind::Data,
            number: 0,
        };
        loop {
            let page = self.parts.pool.disk.list_above(last).await?;
            let Some(end) = page.last().copied().filter(|end| *end > last) else {
                break;
            };
            last = end;
            self.listed.extend(page);
        }
        self.report.checked.objects = self.listed.len() as u64;
        Ok(())
    }

    /// Sees that the data named is there and long enough; what it holds has no checksums.
    pub(super) async fn check_data(&mut self) {
        let data = std::mem::take(&mut self.data);
        let objects: BTreeSet<ObjectId> = data.keys().map(|(id, _)| *id).collect();
        self.report.checked.data_objects = objects.len() as u64;
        for ((id, _), data) in data {
            self.named.insert(id);
            let needed_by = data.needed_by.as_ref();
            // The last block of a volume may be shorter than the others.
            let least = data.end - BLOCK_SIZE + 1;
            let first = self.parts.pool.disk.read_data(
                id,
                data.object_size,
                data.start,
                usize::try_from(BLOCK_SIZE).expect("a small constant"),
            );
            let found = match first.await {
                Ok(_) => self.parts.pool.disk.len(id).await,
                Err(failure) => Err(failure),
            };
            match found {
                Ok(len) if len >= least => {}
                _ if self.was_removed(data.entry) => {}
                Ok(len) => {
                    let why = format!(
                        "{} is too short: it has {len} bytes, the map names blocks up to {}",
                        name_of(id),
                        data.end
                    );
                    self.find(FindingKind::Missing, why, needed_by);
                }
                Err(failure) if failure.code == ErrorCode::NotFound => {
                    let why = format!("{} is missing around byte {}", name_of(id), data.start);
                    self.find(FindingKind::Missing, why, needed_by);
                }
                Err(failure) => self.failed(failure, needed_by),
            }
        }
    }

    /// Reports what takes space for nobody. Nothing if some map could not be read: it might name anything.
    pub(super) async fn find_leaks(&mut self) -> Outcome<Leaks> {
        let mut leaks = Leaks::default();
        if !self.report.clean {
            return Ok(leaks);
        }
        let mut by_lineage: BTreeMap<Lineage, Vec<ObjectId>> = BTreeMap::new();
        for id in &self.listed {
            by_lineage.entry(id.lineage).or_default().push(*id);
        }
        for (lineage, objects) in by_lineage {
            if lineage == Lineage::CATALOGUE {
                self.find_old_catalogue(&objects, &mut leaks).await?;
            } else if self.names.get(lineage).is_none() {
                self.find_stray(lineage, &objects, &mut leaks).await?;
            } else if !self.unsettled.contains(&lineage) {
                self.find_overwritten(&objects).await?;
            }
        }
        Ok(leaks)
    }

    async fn find_old_catalogue(&mut self, objects: &[ObjectId], leaks: &mut Leaks) -> Outcome<()> {
        for id in objects {
            // A checkpoint online may be making a pack, or deleting one.
            if self.named.contains(id) || self.is_online() {
                continue;
            }
            if let Some(bytes) = self.parts.pool.disk.occupied(*id).await? {
                let why = format!("nothing names {}: {bytes} bytes", name_of(*id));
                self.find(FindingKind::Leaked, why, None);
                leaks.objects.push(*id);
            }
        }
        Ok(())
    }

    /// A lineage without an entry.
    async fn find_stray(
        &mut self,
        lineage: Lineage,
        objects: &[ObjectId],
        leaks: &mut Leaks,
    ) -> Outcome<()> {
        let (count, bytes) = self.sum(objects).await?;
        // Deleted since it was listed.
        if count == 0 {
            return Ok(());
        }
        let why = if self.names.is_pending_delete(lineage) {
            format!(
                "{lineage} was removed, its objects wait to be deleted: {count} objects, {bytes} bytes"
            )
        } else {
            format!("nothing names lineage {lineage}: {count} objects, {bytes} bytes")
        };
        self.find(FindingKind::Leaked, why, None);
        leaks.lineages.insert(lineage, count);
        Ok(())
    }

    /// Data and pages of an entry that no map names any more: they go when the lineage goes.
    async fn find_overwritten(&mut self, objects: &[ObjectId]) -> Outcome<()> {
        let unnamed: Vec<ObjectId> = objects
            .iter()
            .filter(|id| matches!(id.kind, ObjectKind::Data | ObjectKind::Pack))
            .filter(|id| !self.named.contains(id))
            .copied()
            .collect();
        let (count, bytes) = self.sum(&unnamed).await?;
        // Without a byte: all of it was given back.
        if bytes == 0 {
            return Ok(());
        }
        let first = name_of(unnamed[0]);
        let why = format!(
            "no map names {first}{}: {bytes} bytes, given back when the lineage is removed",
            if count > 1 {
                format!(" and {} other objects of it", count - 1)
            } else {
                String::new()
            }
        );
        self.find(FindingKind::Leaked, why, None);
        Ok(())
    }

    /// How many of `objects` are there, and the bytes that they occupy.
    async fn sum(&self, objects: &[ObjectId]) -> Outcome<(u64, u64)> {
        let (mut count, mut bytes) = (0, 0);
        for id in objects {
            if let Some(occupied) = self.parts.pool.disk.occupied(*id).await? {
                count += 1;
                bytes += occupied;
            }
        }
        Ok((count, bytes))
    }
}
