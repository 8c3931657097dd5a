//! The whole catalogue as sorted pages in a pack, so that a start reads sequentially and the log can be short.
//!
//! Page body behind the envelope: payload length u32, 0 u32, catalogue records; zeros to 4096.

use std::rc::Rc;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::ObjectId;

use super::Catalogue;
use super::attributes::ATTRIBUTES_LEN_MAX;
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
/// Longest page: a full one and the longest record (below 512 bytes and its attributes), rounded up.
const PAGE_LEN_MAX: usize = PAGE_FULL + 8192;
const _: () = assert!(48 + 512 + ATTRIBUTES_LEN_MAX <= PAGE_LEN_MAX - PAGE_FULL - 3072);
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
        apply_pages(&mut names, &mut rest, at == head.pack_len)
            .map_err(|why| Failure::damaged(format!("{} is damaged: {why}", name_of(id))))?;
    }
    if names.len() != head.entries {
        let why = format!("{} of {} names are there", names.len(), head.entries);
        let pack = name_of(id);
        return Err(Failure::damaged(format!("{pack} is damaged: {why}")));
    }
    Ok(names)
}

/// Applies the pages at the front of `bytes` and takes them off: those that are there whole for sure, or all at the `end`.
fn apply_pages(names: &mut Names, bytes: &mut Vec<u8>, end: bool) -> Result<(), String> {
    let mut used = 0;
    while used < bytes.len() && (end || bytes.len() - used >= PAGE_LEN_MAX) {
        let (changes, len) = decode(&bytes[used..])?;
        changes.into_iter().for_each(|change| names.apply(change));
        used += len;
    }
    bytes.drain(..used);
    Ok(())
}

impl Catalogue {
    /// Writes everything to a new pack and lets the log begin anew. The caller holds the lock.
    pub(super) async fn checkpoint(&self, core: &Rc<Core>) -> Outcome<()> {
        let old = self.head.get();
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
        self.head.swap(&core.disk, head).await?;
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

#[cfg(test)]
mod tests {
    use archipelago_protocol::catalogue::Kind;
    use archipelago_protocol::object::ObjectReply;
    use archipelago_protocol::{ErrorCode, ObjectSize};

    use super::super::attributes::Attributes;
    use super::super::record::Item;
    use super::*;
    use crate::head::CatalogueHead;
    use crate::journal::NoJournals;
    use crate::mapper::MapperConfig;
    use crate::task::Scheduler;
    use crate::tests::{check, run_task};
    use crate::tree::Root;

    /// 179 records of 368 bytes pass 64 KiB; with the envelope a page is 68 KiB. Sixteen of them pass a mebibyte.
    const PAGE: usize = 17 * 4096;

    /// A catalogue of so many volumes with the longest names: records of 368 bytes.
    fn catalogue(volumes: u128) -> Catalogue {
        let catalogue = Catalogue::new(&Rc::new(Scheduler::default()));
        for number in 1..=volumes {
            let item = Item {
                name: Some(format!("{number:0>255}").parse().unwrap()),
                kind: Kind::Volume,
                lineage: Lineage(number),
                parent: None,
                size: 512,
                object_size: ObjectSize::MIN,
                created: 0,
                root: Root::default(),
                attributes: Attributes::default(),
            };
            let mut names = catalogue.names.borrow_mut();
            names.apply(Change::Put(item));
        }
        catalogue
    }

    #[test]
    fn a_page_has_its_records_behind_their_length() {
        let mut record = Writer::bare();
        Change::Doom(Lineage(1 << 64 | 2)).encode(&mut record);
        let page = page(&record.into_bytes());
        check(
            &page[..72],
            "4152434843504147 02000000 00100000 0e2959e1 00000000
             0000000000000000 0000000000000000 18000000 00000000
             02 00 1800 00000000 0100000000000000 0200000000000000",
        );
        assert!(page.len() == 4096 && page[72..].iter().all(|byte| *byte == 0));
        let (changes, len) = decode(&page).unwrap();
        assert_eq!(
            (changes, len),
            (vec![Change::Doom(Lineage(1 << 64 | 2))], 4096)
        );
    }

    #[test]
    fn pages_are_closed_behind_64_kib_and_written_a_mebibyte_at_a_time() {
        assert!(catalogue(0).pages().is_empty());
        let lens = |volumes| -> Vec<usize> {
            let pieces = catalogue(volumes).pages();
            pieces.iter().map(Vec::len).collect()
        };
        assert_eq!(lens(179), [PAGE]);
        assert_eq!(lens(180), [PAGE + 4096]);
        assert_eq!(lens(16 * 179), [16 * PAGE]);
        assert_eq!(lens(16 * 179 + 1), [16 * PAGE, 4096]);
    }

    #[test]
    fn pages_are_applied_when_they_are_there_whole() {
        let pages = catalogue(2 * 179).pages().concat();
        let mut names = Names::default();
        for (there, end, left, volumes) in [
            // A page may be longer than this one: it waits for more.
            (PAGE_LEN_MAX - 1, false, PAGE_LEN_MAX - 1, 0),
            (PAGE_LEN_MAX, false, PAGE_LEN_MAX - PAGE, 179),
            (2 * PAGE, false, PAGE, 179),
            (2 * PAGE, true, 0, 2 * 179),
        ] {
            let mut bytes = pages[..there].to_vec();
            apply_pages(&mut names, &mut bytes, end).unwrap();
            assert_eq!(
                (bytes.len(), names.len()),
                (left, volumes),
                "{there}, {end}"
            );
        }
    }

    /// What is read of `pack`, if the last checkpoint is `told`: bytes of it, and names.
    fn read_back(pack: &[u8], told: (u64, u64), answer: Option<ErrorCode>) -> Outcome<Names> {
        let journals = Box::new(NoJournals);
        let core = Rc::new(Core::new(MapperConfig::default(), journals));
        let head = CatalogueHead {
            pack: 7,
            pack_len: told.0,
            entries: told.1,
            ..core.catalogue.head.get()
        };
        let (scheduler, task) = (Rc::clone(&core.scheduler), Rc::clone(&core));
        let names = async move { read(&task, &head).await };
        run_task(&scheduler, &core.disk, names, |request| {
            assert_eq!(request.id, ObjectId::pack(Lineage::CATALOGUE, 7));
            let at = usize::try_from(request.offset).unwrap();
            match answer {
                Some(code) => (ObjectReply::failed(code), Vec::new()),
                None => {
                    let bytes = pack[at..][..request.len as usize].to_vec();
                    (ObjectReply::done(request.len), bytes)
                }
            }
        })
    }

    #[test]
    fn what_was_written_in_pieces_is_read_in_pieces() {
        for volumes in [0, 1, 180, 16 * 179 + 1, 40 * 179] {
            let catalogue = catalogue(volumes);
            let pack = catalogue.pages().concat();
            let entries = u64::try_from(volumes).unwrap();
            let names = read_back(&pack, (pack.len() as u64, entries), None).unwrap();
            assert!(
                names.dump().eq(catalogue.names.borrow().dump()),
                "{volumes}"
            );
        }
    }

    #[test]
    fn a_pack_that_is_damaged_missing_or_cut_is_told() {
        let pack = catalogue(400).pages().concat();
        let len = pack.len() as u64;
        let why = |outcome: Outcome<Names>| {
            let failure = outcome.unwrap_err();
            (failure.code, failure.message)
        };
        let mut bad = pack.clone();
        bad[100_000] ^= 1;
        let (code, message) = why(read_back(&bad, (len, 400), None));
        assert_eq!(code, ErrorCode::Damaged);
        assert!(message.contains("checksum does not match"), "{message}");
        let (code, message) = why(read_back(&pack, (len - 4096, 400), None));
        assert_eq!(code, ErrorCode::Damaged);
        assert!(message.contains("its length"), "{message}");
        let (code, message) = why(read_back(&pack, (PAGE as u64, 400), None));
        assert_eq!(code, ErrorCode::Damaged);
        assert!(message.contains("179 of 400 names"), "{message}");
        let missing = why(read_back(&pack, (len, 400), Some(ErrorCode::NotFound)));
        let expected = "pack 7 of the catalogue is missing".to_owned();
        assert_eq!(missing, (ErrorCode::Damaged, expected));
        let (code, _) = why(read_back(&pack, (len, 400), Some(ErrorCode::Io)));
        assert_eq!(code, ErrorCode::Io);
    }
}
