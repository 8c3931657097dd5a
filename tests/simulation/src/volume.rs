//! An open volume, as a task uses it: what a guest and control ask of the volume peer.
//!
//! Invariants
//! - Each write has a stamp of its own, eight bytes at a time with the sector's number: what is read tells whose it is.
//! - Guest memory of a request is not used again before its answer.

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Lineage, SECTOR_SIZE};
use archipelago_protocol::status::{BlockState, StatusPage};
use archipelago_protocol::volume::{OpenMode, VolumeHandle, VolumeOp};

use crate::machine::Link;
use crate::node::STATUS_PAGE_LEN;
use crate::oracle::Value;
use crate::trouble::Trouble;
use crate::wiring::GUEST_AREA_LEN;

const SECTOR: usize = 512;

/// An open volume, or frozen thing.
#[derive(Debug)]
pub struct Volume {
    link: Link,
    handle: VolumeHandle,
    lineage: Lineage,
}

impl Volume {
    /// Opens `lineage`; its size in bytes comes too.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn open(
        link: &Link,
        lineage: Lineage,
        mode: OpenMode,
    ) -> Result<(Volume, u64), Trouble> {
        let handle = link.node(|node| node.open(lineage, mode));
        let info = link.wait(|node| node.take_opened(handle)).await?;
        let volume = Volume {
            link: link.clone(),
            handle,
            lineage,
        };
        Ok((volume, info.size))
    }

    async fn request(
        &self,
        op: VolumeOp,
        offset: u64,
        len: u64,
        area: Option<usize>,
    ) -> Result<(), Trouble> {
        let cookie = self
            .link
            .node(|node| node.submit(self.handle, op, offset, len, area))?;
        Ok(self.link.wait(|node| node.take_result(cookie)).await?)
    }

    /// The stamps of `count` sectors from the beginning.
    ///
    /// # Errors
    /// What the volume peer says, and sectors that are no stamp of theirs.
    pub async fn read_all(&self, count: usize) -> Result<Vec<Value>, Trouble> {
        let len = count * SECTOR;
        assert!(len <= GUEST_AREA_LEN, "volumes here are small");
        let area = self.link.take_area().await;
        let read = self
            .request(VolumeOp::Read, 0, len as u64, Some(area))
            .await;
        let bytes = self.link.with(|wiring| {
            wiring.give_area(area);
            wiring.bytes(area, len)
        });
        // The map says that it is there, and it is not.
        if let Err(Trouble::Refused(ErrorCode::Damaged, what)) = read {
            return Err(Trouble::Wrong(format!(
                "nothing where the map points: {what}"
            )));
        }
        read?;
        bytes
            .chunks_exact(SECTOR)
            .enumerate()
            .map(|(index, sector)| unstamp(sector, index))
            .collect()
    }

    /// Which of `count` sectors from the beginning are in a hole.
    ///
    /// # Errors
    /// What the volume peer says, and pages that cannot be.
    pub async fn holes(&self, count: usize) -> Result<Vec<bool>, Trouble> {
        let end = count as u64 * SECTOR_SIZE;
        let mut holes = Vec::with_capacity(count);
        let mut at = 0;
        while at < end {
            let area = self.link.take_area().await;
            let asked = self
                .request(VolumeOp::BlockStatus, at, end - at, Some(area))
                .await;
            let bytes = self.link.with(|wiring| {
                wiring.give_area(area);
                wiring.bytes(area, STATUS_PAGE_LEN as usize)
            });
            asked?;
            let page = StatusPage::decode(&bytes, end - at)
                .map_err(|code| Trouble::Wrong(format!("the page of a status: {code}")))?;
            at += page.covered();
            for run in page.runs() {
                let is_hole = run.state == BlockState::Hole;
                holes.extend((0..run.len / SECTOR_SIZE).map(|_| is_hole));
            }
        }
        Ok(holes)
    }

    /// `len` bytes at `offset`, whatever they are.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Trouble> {
        let area = self.link.take_area().await;
        let read = self
            .request(VolumeOp::Read, offset, len as u64, Some(area))
            .await;
        let bytes = self.link.with(|wiring| {
            wiring.give_area(area);
            wiring.bytes(area, len)
        });
        read.map(|()| bytes)
    }

    /// Writes `value` to `count` sectors at `first`, durably or not.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn write(
        &self,
        first: usize,
        count: usize,
        value: Value,
        durable: bool,
    ) -> Result<(), Trouble> {
        let bytes: Vec<u8> = (first..first + count)
            .flat_map(|index| stamp(value, index))
            .collect();
        let area = self.link.take_area().await;
        self.link.with(|wiring| wiring.fill(area, &bytes));
        let offset = first as u64 * SECTOR_SIZE;
        let op = VolumeOp::Write { durable };
        let result = self
            .request(op, offset, bytes.len() as u64, Some(area))
            .await;
        self.link.with(|wiring| wiring.give_area(area));
        result
    }

    /// `count` sectors at `first` read as zeros from now on, because of `op`.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn zero(&self, first: usize, count: usize, op: VolumeOp) -> Result<(), Trouble> {
        let (offset, len) = (first as u64 * SECTOR_SIZE, count as u64 * SECTOR_SIZE);
        self.request(op, offset, len, None).await
    }

    /// Makes durable what was completed before.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn flush(&self) -> Result<(), Trouble> {
        self.request(VolumeOp::Flush, 0, 0, None).await
    }

    /// Makes the snapshot that `token` stands for; `begun` is called when its epoch has been raised.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn snapshot(&self, token: u64, begun: impl FnOnce()) -> Result<(), Trouble> {
        self.link.node(|node| node.snapshot(self.lineage, token));
        self.link
            .wait(|node| node.has_begun(token).then_some(()))
            .await;
        begun();
        Ok(self.link.wait(|node| node.take_snapshot(token)).await?)
    }

    /// Flushes and gives ownership back.
    ///
    /// # Errors
    /// What the volume peer says.
    pub async fn close(&self) -> Result<(), Trouble> {
        self.link.node(|node| node.close(self.handle));
        Ok(self.link.wait(|node| node.take_closed(self.handle)).await?)
    }
}

/// The bytes of sector `index` that a write of `value` leaves: they tell both, eight bytes at a time.
fn stamp(value: Value, index: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if value != 0 {
        let word = u64::from(value) << 32 | index as u64;
        bytes
            .chunks_exact_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes()));
    }
    bytes
}

fn unstamp(sector: &[u8], index: usize) -> Result<Value, Trouble> {
    let first: [u8; 8] = sector[..8].try_into().expect("eight bytes");
    let word = u64::from_le_bytes(first);
    let whole = sector.chunks_exact(8).all(|chunk| chunk == first);
    let here = word == 0 || word & 0xffff_ffff == index as u64;
    if !whole || !here {
        return Err(Trouble::Wrong(format!(
            "sector {index} holds no stamp of its own: {word:#x}, whole: {whole}"
        )));
    }
    Ok(Value::try_from(word >> 32).expect("32 bits are left"))
}
