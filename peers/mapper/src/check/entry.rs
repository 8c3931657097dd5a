//! Volumes, snapshots and images: the head, the log, and the root from which the map is walked.

use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::check::FindingKind;
use archipelago_protocol::object::{ObjectId, ObjectKind};
use archipelago_protocol::{BLOCK_SIZE, Epoch, Lineage};

use super::Inspection;
use crate::catalogue::Item;
use crate::disk::name_of;
use crate::failure::Outcome;
use crate::head::VolumeHead;
use crate::log::{Reach, Record, RecordKind};
use crate::parts::Parts;
use crate::session::read_head;
use crate::tree::{Layer, Root};
use crate::volume::JournaledBlocks;

/// Whether another mapper has the volume of `head` open.
fn is_open_elsewhere(parts: &Parts, head: &VolumeHead) -> bool {
    let names = parts.catalogue.names();
    let owner = head.owner;
    !head.clean && owner != parts.pool.config.owner && names.incarnations().is_live(owner)
}

impl Inspection {
    pub(super) async fn check_entries(&mut self) {
        let items: Vec<Item> = self.names.items().cloned().collect();
        for item in items {
            let (found, more, clean) = (
                self.report.findings.len(),
                self.report.more,
                self.report.clean,
            );
            self.report.checked.entries += u64::from(item.name.is_some());
            if let Err(failure) = self.check_entry(&item).await {
                self.failed(failure, item.name.as_ref());
            }
            if self.was_removed(item.lineage) {
                self.report.findings.truncate(found);
                (self.report.more, self.report.clean) = (more, clean);
            }
        }
    }

    /// Whether an entry was removed since the catalogue was read.
    pub(super) fn was_removed(&self, lineage: Lineage) -> bool {
        let names = self.parts.catalogue.names();
        self.is_online() && names.get(lineage).is_none()
    }

    async fn check_entry(&mut self, item: &Item) -> Outcome<()> {
        if item.name.is_none() || matches!(item.kind, Kind::Snapshot | Kind::Image) {
            self.check_former_head(item).await?;
        }
        let root = match item.kind {
            // What has no name any more is never read again: its descendants have roots of their own.
            _ if item.name.is_none() => return Ok(()),
            Kind::Snapshot | Kind::Image => item.root,
            Kind::Volume | Kind::Importing => self.check_volume(item).await?,
        };
        self.walk(root, item).await;
        Ok(())
    }

    /// A head that is not needed any more: of an image since it was frozen, of a volume that lost its name.
    async fn check_former_head(&mut self, item: &Item) -> Outcome<()> {
        if !self.listed.contains(&ObjectId::head(item.lineage)) {
            return Ok(());
        }
        self.report.checked.heads += 1;
        let Some(head) = read_head(&self.parts, item).await? else {
            return Ok(());
        };
        let head = head.get();
        let log = head.log(item.lineage);
        match self.listed.contains(&log.id) {
            true => log.check_sectors(&self.parts.pool.disk).await.map(drop),
            false => Ok(()),
        }
    }

    /// Head and log of a volume; its root.
    async fn check_volume(&mut self, item: &Item) -> Outcome<Root> {
        let parts = Rc::clone(&self.parts);
        let _alone = parts.volumes.lock(item.lineage).await;
        let open = parts.volumes.get(item.lineage);
        let _still = match &open {
            Some(volume) => Some(volume.stand_still().await),
            None => None,
        };
        if self.was_removed(item.lineage) {
            return Ok(Root::default());
        }
        let Some(head) = read_head(&parts, item).await? else {
            self.check_headless(item);
            return Ok(item.root);
        };
        let head = head.get();
        self.report.checked.heads += 1;
        if open.is_some() || !head.clean {
            self.unsettled.insert(item.lineage);
        }
        if is_open_elsewhere(&parts, &head) {
            // Its log is appended to while it is read, and nothing here keeps its owner away.
            return Ok(head.root);
        }
        match self.check_log(item, &head).await {
            Ok(frozen) => self.check_frozen(item, frozen),
            Err(failure) => self.failed(failure, item.name.as_ref()),
        }
        Ok(head.root)
    }

    /// No snapshot has blocks of epochs that the volume owns, and writes over in place.
    fn check_frozen(&mut self, item: &Item, frozen: Epoch) {
        let newest = {
            let (read, now) = (&self.names, self.parts.catalogue.names());
            let removed = |lineage| {
                read.is_orphan(lineage)
                    || self.is_online() && (now.get(lineage).is_none() || now.is_orphan(lineage))
            };
            read.newest_snapshot(item.lineage, |snapshot| !removed(snapshot.lineage))
        };
        if newest.is_some_and(|newest| newest > frozen) {
            let why = format!(
                "{} owns blocks of its newest snapshot: it is frozen up to epoch {}",
                item.lineage, frozen.0
            );
            self.find(FindingKind::Damaged, why, item.name.as_ref());
        }
    }

    /// A head is durable before anything is written that it leads to, but for the log that it names.
    fn check_headless(&mut self, item: &Item) {
        let id = ObjectId::head(item.lineage);
        let rest = self
            .listed
            .iter()
            .filter(|object| object.lineage == item.lineage);
        let lost = rest
            .filter(|object| matches!(object.kind, ObjectKind::Data | ObjectKind::Pack))
            .count();
        if lost > 0 {
            let why = format!(
                "{} is missing, but there are {lost} objects of data and pages",
                name_of(id)
            );
            self.find(FindingKind::Missing, why, item.name.as_ref());
        }
    }

    /// Up to which epoch head and log say that the volume is frozen.
    async fn check_log(&mut self, item: &Item, head: &VolumeHead) -> Outcome<Epoch> {
        self.report.checked.logs += 1;
        let mut log = head.log(item.lineage);
        if head.clean {
            // Nothing in it is needed; but the next session writes into it and relies on its length.
            let checked = log.check_sectors(&self.parts.pool.disk).await;
            return checked.map(|_| head.frozen);
        }
        let parts = Rc::clone(&self.parts);
        let mut records = Vec::new();
        let mut data = JournaledBlocks::default();
        for content in log
            .replay(&parts.pool.disk, log.of_session(), Reach::Unknown)
            .await?
        {
            let batch = Record::decode_all(&content.payload).map_err(|why| log.damaged(&why))?;
            data.replay(&batch, content.blocks)
                .map_err(|why| log.damaged(&why.to_string()))?;
            records.extend(batch);
        }
        for record in records
            .iter()
            .filter(|record| record.kind == RecordKind::Present)
        {
            let layer = Layer {
                lineage: item.lineage,
                epoch: record.epoch,
            };
            // What the log holds may be nowhere else yet.
            let mut start = record.start;
            for block in data.pending_in(record.epoch, record.start..record.end()) {
                self.need(item, layer, start * BLOCK_SIZE, block * BLOCK_SIZE);
                start = block + 1;
            }
            self.need(item, layer, start * BLOCK_SIZE, record.end() * BLOCK_SIZE);
        }
        self.check_tail(&log, item.name.as_ref()).await?;
        let freezes = records
            .iter()
            .filter(|record| record.kind == RecordKind::Freeze);
        let logged = freezes.map(|record| record.epoch).max();
        Ok(logged.map_or(head.frozen, |logged| logged.max(head.frozen)))
    }
}
