//! The whole catalogue as sorted pages in a pack, so that a start reads sequentially and the log can be short.
//!
//! Page body behind the envelope: payload length u32, 0 u32, catalogue records; zeros to 4096.

use std::rc::Rc;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::ObjectId;

use super::Catalogue;
use super::names::Names;
use super::record::Change;
use crate::core::Core;
use crate::disk::name_of;
use crate::failure::{Failure, Outcome};
use crate::format::{Problem, Reader, Writer};
use crate::head::CatalogueHead;

const MAGIC: [u8; 8] = *b"ARCHCPAG";
/// A page is closed when its records pass this.
const PAGE_FULL: usize = 64 * 1024;
/// Longest page: a full one and the longest record (below 512 bytes), rounded up.
const PAGE_LEN_MAX: usize = PAGE_FULL + 8192;
/// Bytes written or read at a time.
const PIECE: usize = 1 << 20;

fn page(records: &[u8]) -> Vec<u8> {
    let mut page = Writer::sealed(MAGIC, Lineage::CATALOGUE);
    page.u32(u32::try_from(records.len()).expect("at most a page"));
    page.u32(0);
    page.bytes(records);
    page.pad(4096);
    page.seal()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<(Vec<Change>, usize), String> {
    let (mut fields, len) = Reader::open(MAGIC, Some(Lineage::CATALOGUE), bytes)
        .map_err(|problem| problem.to_string())?;
    let short = || Problem::Field("page end").to_string();
    let payload_len = fields.u32().ok_or_else(short)?;
    fields.u32().ok_or_else(short)?;
    let payload = fields.take(payload_len as usize).ok_or_else(short)?;
    Ok((Change::decode_all(payload)?, len))
}

/// What the last checkpoint holds.
pub(super) async fn read(core: &Rc<Core>, head: &CatalogueHead) -> Outcome<Names> {
    let mut names = Names::default();
    let id = ObjectId::pack(Lineage::CATALOGUE, head.pack);
    let (mut at, mut rest) = (0, Vec::new());
    while at < head.pack_len {
        let len = usize::try_from(head.pack_len - at)
            .unwrap_or(usize::MAX)
            .min(PIECE);
        let bytes = core
            .disk
            .read(id, at, len)
            .await
            .map_err(|failure| match failure.code {
                archipelago_protocol::ErrorCode::NotFound => {
                    Failure::damaged(format!("{} is missing", name_of(id)))
                }
                _ => failure,
            })?;
        at += bytes.len() as u64;
        rest.extend_from_slice(&bytes);
        let mut used = 0;
        while used < rest.len() && (rest.len() - used >= PAGE_LEN_MAX || at == head.pack_len) {
            let (changes, len) = decode(&rest[used..])
                .map_err(|why| Failure::damaged(format!("{} is damaged: {why}", name_of(id))))?;
            changes.into_iter().for_each(|change| names.apply(change));
            used += len;
        }
        rest.drain(..used);
    }
    Ok(names)
}

impl Catalogue {
    /// Writes everything to a new pack and lets the log begin anew. The caller holds the lock.
    pub(super) async fn checkpoint(&self, core: &Rc<Core>) -> Outcome<()> {
        let (old, version) = self.head.get();
        let number = self.packs.get() + 1;
        self.packs.set(number);
        // Unique: the generation is, and a pack that was begun is never written again.
        let id = ObjectId::pack(Lineage::CATALOGUE, old.generation.0 << 16 | number);
        let pages = self.pages();
        let mut at = 0;
        for piece in &pages {
            core.disk.write(id, at, piece).await?;
            at += piece.len() as u64;
        }
        core.disk.sync(id).await?;
        let position = self.log.borrow().position;
        let entries = self.names.borrow().len();
        let head = CatalogueHead {
            log_start: position,
            pack: id.number,
            pack_len: at,
            entries,
            ..old
        };
        let version = core
            .disk
            .swap(ObjectId::head(Lineage::CATALOGUE), version, head.encode())
            .await?;
        self.head.set((head, version));
        self.log.borrow_mut().start = position;
        core.count(|counters| counters.catalogue_checkpoints += 1);
        if old.pack != 0 {
            let core = Rc::clone(core);
            let old = ObjectId::pack(Lineage::CATALOGUE, old.pack);
            core.scheduler.clone().spawn(async move {
                if let Err(failure) = core.disk.delete(old).await {
                    tracing::warn!("an old catalogue checkpoint stays: {}", failure.message);
                }
            });
        }
        Ok(())
    }

    /// Pages in pieces of about [`PIECE`].
    fn pages(&self) -> Vec<Vec<u8>> {
        let names = self.names.borrow();
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let mut records = Writer::bare();
        let mut put = |records: &mut Writer| {
            let bytes = std::mem::replace(records, Writer::bare()).into_bytes();
            let page = page(&bytes);
            match pieces.last_mut() {
                Some(piece) if piece.len() < PIECE => piece.extend_from_slice(&page),
                _ => pieces.push(page),
            }
        };
        for change in names.dump() {
            change.encode(&mut records);
            if records.len() >= PAGE_FULL {
                put(&mut records);
            }
        }
        if records.len() > 0 {
            put(&mut records);
        }
        pieces
    }
}
