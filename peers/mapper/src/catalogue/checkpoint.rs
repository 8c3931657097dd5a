//! The whole catalogue as pages in order of the lineages, one behind the other in packs of equal length, so that a start reads
//! sequentially and the log can be short.
//!
//! A page is made, and then written, before the next one is made: so a step takes as long as one page does, whatever there is.
//!
//! Page body behind the envelope: payload length u32, 0 u32, catalogue records; zeros to 4096.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Lineage};

use super::names::Names;
use super::record::{Change, RECORD_LEN_MAX};
use crate::disk::{Disk, name_of};
use crate::failure::{Failure, Outcome};
use crate::format::{ENVELOPE_LEN, Opened, Problem, Reader, Unreadable, Writer};
use crate::head::CatalogueHead;

const MAGIC: [u8; 8] = *b"ARCHCPAG";
/// A page is closed when its records pass this.
const PAGE_FULL: usize = 64 * 1024;
/// Longest page: its fields, a full page of records but for one byte, and the longest record, rounded up to 4096.
const PAGE_LEN_MAX: usize = PAGE_FULL + 8192;
const _: () = assert!(ENVELOPE_LEN + 8 + RECORD_LEN_MAX <= PAGE_LEN_MAX - PAGE_FULL);
/// Bytes read at a time: some pages, so that a step has a bounded number of records.
const PIECE: usize = 256 << 10;

fn page(records: &[u8]) -> Vec<u8> {
    let mut page = Writer::sealed(MAGIC, Lineage::CATALOGUE);
    page.u32(u32::try_from(records.len()).expect("at most a page"));
    page.u32(0);
    page.bytes(records);
    page.pad(4096);
    page.seal()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<(Vec<Change>, usize), Unreadable> {
    let Opened {
        mut fields, len, ..
    } = Reader::open(MAGIC, Some(Lineage::CATALOGUE), bytes)?;
    let short = || Problem::Field("page end");
    let payload_len = fields.u32().ok_or_else(short)?;
    fields.zeros(4).ok_or(Problem::Field("reserved"))?;
    let payload = fields.take(payload_len as usize).ok_or_else(short)?;
    fields.padding()?;
    Ok((Change::decode_all(payload)?, len))
}

/// What the last checkpoint holds.
pub(super) async fn read(disk: &Disk, head: &CatalogueHead) -> Outcome<Names> {
    let mut names = Names::default();
    let (mut at, mut rest) = (0_u64, Vec::new());
    let mut last = ObjectId::pack(Lineage::CATALOGUE, head.pack);
    for id in head.packs() {
        last = id;
        let end = head.pack_len.min(at.saturating_add(head.pack_capacity));
        let mut offset = 0;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
            let bytes = disk
                .read(id, offset, len)
                .await
                .map_err(|failure| match failure.code {
                    ErrorCode::NotFound => Failure::damaged(format!("{} is missing", name_of(id))),
                    _ => failure,
                })?;
            at += bytes.len() as u64;
            offset += bytes.len() as u64;
            rest.extend_from_slice(&bytes);
            apply_pages(&mut names, &mut rest, at == head.pack_len)
                .map_err(|why| Failure::unreadable(&name_of(id), why))?;
        }
    }
    if names.len() != head.entries {
        let why = format!("{} of {} names are there", names.len(), head.entries);
        let pack = name_of(last);
        return Err(Failure::damaged(format!("{pack} is damaged: {why}")));
    }
    Ok(names)
}

/// Applies the pages at the front of `bytes` and takes them off: those that are there whole for sure, or all at the `end`.
fn apply_pages(names: &mut Names, bytes: &mut Vec<u8>, end: bool) -> Result<(), Unreadable> {
    let mut used = 0;
    while used < bytes.len() && (end || bytes.len() - used >= PAGE_LEN_MAX) {
        let (changes, len) = decode(&bytes[used..])?;
        changes.into_iter().for_each(|change| names.apply(change));
        used += len;
    }
    bytes.drain(..used);
    Ok(())
}

/// The next page of a dump; `None`: that was all.
pub(super) fn next_page(mut next: impl FnMut() -> Option<Change>) -> Option<Vec<u8>> {
    let mut records = Writer::bare();
    while records.len() < PAGE_FULL
        && let Some(change) = next()
    {
        change.encode(&mut records);
    }
    (records.len() > 0).then(|| page(&records.into_bytes()))
}

/// Writes pages one behind the other to new packs.
#[derive(Debug)]
pub(super) struct PackWriter<'a> {
    disk: &'a Disk,
    first: u64,
    capacity: u64,
    len: u64,
}

impl<'a> PackWriter<'a> {
    /// To packs of `capacity` bytes, numbered from `first` on.
    pub(super) fn new(disk: &'a Disk, first: u64, capacity: u64) -> Self {
        PackWriter {
            disk,
            first,
            capacity,
            len: 0,
        }
    }

    /// Bytes of all pages that were written, or begun.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Writes a page behind the others; what has no room in a pack goes to the next one.
    pub(super) async fn put(&mut self, page: &[u8]) -> Outcome<()> {
        let mut rest = page;
        while !rest.is_empty() {
            let at = self.len % self.capacity;
            let room = usize::try_from(self.capacity - at).unwrap_or(usize::MAX);
            let (now, behind) = rest.split_at(rest.len().min(room));
            let pack = self.pack();
            self.len += now.len() as u64;
            self.disk.write(pack, at, now).await?;
            if self.len.is_multiple_of(self.capacity) {
                self.disk.sync(pack).await?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Makes the last pack durable.
    pub(super) async fn finish(&self) -> Outcome<()> {
        match self.len.is_multiple_of(self.capacity) {
            true => Ok(()),
            false => self.disk.sync(self.pack()).await,
        }
    }

    /// The one that is being written.
    fn pack(&self) -> ObjectId {
        ObjectId::pack(Lineage::CATALOGUE, self.first + self.len / self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use archipelago_protocol::catalogue::Kind;
    use archipelago_protocol::object::{ObjectOp, ObjectReply};
    use archipelago_protocol::{Epoch, Generation, ObjectSize};

    use super::super::attributes::Attributes;
    use super::super::record::Item;
    use super::*;
    use crate::task::Scheduler;
    use crate::tests::{check, run_task};
    use crate::tree::Root;

    /// 179 records of 368 bytes pass 64 KiB; with the envelope a page is 68 KiB.
    const PAGE: usize = 17 * 4096;

    /// So many volumes with the longest names: records of 368 bytes.
    fn volumes(count: u128) -> Names {
        let mut names = Names::default();
        for number in 1..=count {
            let item = Item {
                name: Some(format!("{number:0>255}").parse().unwrap()),
                kind: Kind::Volume,
                lineage: Lineage(number),
                sources: Vec::new(),
                size: 512,
                object_size: ObjectSize::MIN,
                created: 0,
                epoch: Epoch(0),
                removed: 0,
                root: Root::default(),
                attributes: Attributes::default(),
            };
            names.apply(Change::Put(item));
        }
        names
    }

    fn pages(names: &mut Names) -> Vec<Vec<u8>> {
        names.begin_dump();
        std::iter::from_fn(|| next_page(|| names.dump_next())).collect()
    }

    #[test]
    fn a_page_has_its_records_behind_their_length() {
        let mut record = Writer::bare();
        Change::Forget(Lineage(1 << 64 | 2)).encode(&mut record);
        let page = page(&record.into_bytes());
        check(
            &page[..80],
            "4152434843504147 03000000 00100000 69115311 00000000 00000000 00000000
             0000000000000000 0000000000000000 18000000 00000000
             03 00 1800 00000000 0100000000000000 0200000000000000",
        );
        assert!(page.len() == 4096 && page[80..].iter().all(|byte| *byte == 0));
        let (changes, len) = decode(&page).unwrap();
        assert_eq!(
            (changes, len),
            (vec![Change::Forget(Lineage(1 << 64 | 2))], 4096)
        );
    }

    #[test]
    fn pages_are_closed_behind_64_kib() {
        assert!(pages(&mut volumes(0)).is_empty());
        let lens = |count| -> Vec<usize> {
            let pages = pages(&mut volumes(count));
            pages.iter().map(Vec::len).collect()
        };
        assert_eq!(lens(179), [PAGE]);
        assert_eq!(lens(180), [PAGE, 4096]);
        assert_eq!(lens(3 * 179), [PAGE; 3]);
    }

    #[test]
    fn pages_fill_one_pack_and_then_the_next_and_each_is_synced_once() {
        // Of 8192 bytes each: requests as (operation, pack, offset, bytes).
        for (lens, expected) in [
            (vec![], "".to_owned()),
            (vec![4096], "W7.0+4096 S7".to_owned()),
            (vec![8192], "W7.0+8192 S7".to_owned()),
            (
                vec![4096, 8192, 8192],
                "W7.0+4096 W7.4096+4096 S7 W8.0+4096 W8.4096+4096 S8 W9.0+4096 S9".to_owned(),
            ),
        ] {
            let scheduler = Rc::new(Scheduler::default());
            let disk = Rc::new(Disk::new(&scheduler, 256 << 10));
            let task = Rc::clone(&disk);
            let total: usize = lens.iter().sum();
            let write = async move {
                let mut packs = PackWriter::new(&task, 7, 8192);
                for len in lens {
                    packs.put(&vec![1; len]).await?;
                }
                packs.finish().await?;
                Ok::<_, Failure>(packs.len())
            };
            let mut asked = Vec::new();
            let written = run_task(&scheduler, &disk, write, |request| {
                let (pack, at, len) = (request.id.number, request.offset, request.len);
                asked.push(match request.op {
                    ObjectOp::Write => format!("W{pack}.{at}+{len}"),
                    ObjectOp::Sync => format!("S{pack}"),
                    op => format!("{op:?}"),
                });
                (ObjectReply::done(len), Vec::new())
            });
            assert_eq!(asked.join(" "), expected);
            assert_eq!(written, Ok(total as u64));
        }
    }

    #[test]
    fn pages_are_applied_when_they_are_there_whole() {
        let pages = pages(&mut volumes(2 * 179)).concat();
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

    /// Bytes of a pack: a page reaches from one into the next.
    const CAPACITY: u64 = 400 << 10;

    /// What is read of `pack`, if the head has `recorded` its bytes and names.
    fn read_back(pack: &[u8], recorded: (u64, u64), answer: Option<ErrorCode>) -> Outcome<Names> {
        let head = CatalogueHead {
            generation: Generation(1),
            owner: 0,
            log_number: 1,
            log_len: 1 << 20,
            log_start: 0,
            pack: 7,
            pack_len: recorded.0,
            pack_capacity: CAPACITY,
            entries: recorded.1,
            compatible: 0,
        };
        let scheduler = Rc::new(Scheduler::default());
        let disk = Rc::new(Disk::new(&scheduler, 256 << 10));
        let task = Rc::clone(&disk);
        let names = async move { read(&task, &head).await };
        run_task(&scheduler, &disk, names, |request| {
            let first = request.id.number.checked_sub(7).unwrap();
            assert_eq!(request.id, ObjectId::pack(Lineage::CATALOGUE, 7 + first));
            assert!(request.offset + u64::from(request.len) <= CAPACITY);
            let at = usize::try_from(first * CAPACITY + request.offset).unwrap();
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
        for count in [0, 1, 180, 16 * 179 + 1, 40 * 179] {
            let mut written = volumes(count);
            let pack = pages(&mut written).concat();
            let entries = u64::try_from(count).unwrap();
            let names = read_back(&pack, (pack.len() as u64, entries), None).unwrap();
            assert!(names.dump().eq(written.dump()), "{count}");
        }
    }

    #[test]
    fn a_pack_that_is_damaged_missing_or_cut_is_told() {
        let pack = pages(&mut volumes(400)).concat();
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
