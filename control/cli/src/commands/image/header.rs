//! Which other files an image names, read from its header before any program opens the image.
//!
//! An image from an untrusted source may name any file of this host as its backing or data file: a program that opens the image without a
//! check discloses that file. Layouts: QEMU's `docs/interop/qcow2.txt`; VMware's *Virtual Disk Format 5.0*; Microsoft's *Virtual Hard Disk
//! Image Format Specification* 1.0 and *VHDX Format Specification* 1.0.

use std::fs::File;
use std::os::unix::fs::FileExt;

use archipelago_protocol::{Error, ErrorCode};

use super::interrupt::Interrupt;
use super::source::Version;
use crate::format::Format;

/// Longest name of a backing file: the format's own limit.
const NAME_LEN_MAX: u32 = 1023;
/// Header extensions that are looked at; QEMU writes three.
const EXTENSIONS_MAX: usize = 64;
/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Longest name of a format.
const FORMAT_LEN_MAX: u32 = 32;
/// The incompatible feature: the last writer found the image to be inconsistent.
const CORRUPT: u64 = 1 << 1;
/// The incompatible feature: the data lies in another file.
const DATA_FILE: u64 = 1 << 2;
/// Longest first table of a qcow2: QEMU's own limit.
const L1_LEN_MAX: u64 = 32 << 20;
/// Bytes of the first table that are read at once.
const L1_STEP: u64 = 1 << 20;
/// Offset of a table of the second level: bits of an entry of the first.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A flag of an entry of the second level: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The incompatible feature: entries of the second level have twice the length.
const EXTENDED_L2: u64 = 1 << 4;
/// Bytes of a VMDK's descriptor that are looked at; the format's limit is 20 sectors in practice.
const DESCRIPTOR_LEN_MAX: usize = 64 << 10;
/// Length of the range behind the first sector in which QEMU searches for the name of a parent, whatever the header states.
const PARENT_LEN: u64 = 20 * SECTOR;
/// What precedes the name of a parent, anywhere in that range.
const PARENT: &str = "parentfilenamehint";
const SECTOR: u64 = 512;
/// The mark of a VHD's footer.
const VHD_MARK: &[u8] = b"conectix";
/// Types of a VHD, from its footer.
const VHD_FIXED: u32 = 2;
const VHD_DYNAMIC: u32 = 3;
const VHD_DIFFERENCING: u32 = 4;
/// Where the table of a VHDX's regions lies, and its length.
const REGIONS_AT: u64 = 192 << 10;
const REGIONS_LEN: usize = 64 << 10;
const REGIONS_HEAD_LEN: usize = 16;
const REGION_LEN: usize = 32;

/// A file below an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    /// The name, as the image has it.
    pub(super) name: String,
    /// The format, if the image states it.
    pub(super) format: Option<String>,
}

/// The backing file of the image in `file`.
///
/// # Errors
/// [`ErrorCode::Unsupported`] for an image whose data lies in further files; [`ErrorCode::Damaged`] for a header with impossible values.
pub(super) fn backing(
    file: &File,
    title: &str,
    format: Format,
    interrupt: &Interrupt,
) -> Result<Option<Backing>, Error> {
    match format {
        Format::Qcow2 => qcow2(file, title, interrupt),
        Format::Vmdk => vmdk(file, title).map(|()| None),
        Format::Vpc => vpc(file, title).map(|()| None),
        // QEMU itself refuses a VHDX with a parent.
        Format::Vhdx => vhdx(file, title).map(|()| None),
        Format::Raw => Ok(None),
    }
}

/// Bytes of `file`.
fn len_of(file: &File, title: &str) -> Result<u64, Error> {
    Version::len(file).map_err(|error| Error::new(ErrorCode::Io, format!("{title}: {error}")))
}

fn damaged(title: &str, what: &str) -> Error {
    let message = format!("{title}: {what}");
    Error::new(ErrorCode::Damaged, message).with_hint("copy or download it again")
}

fn unsupported(title: &str, what: &str) -> Error {
    Error::new(ErrorCode::Unsupported, format!("{title}: {what}"))
        .with_hint("convert it to one file where it was made: `qemu-img convert -O qcow2`")
}

fn read(file: &File, title: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged(title, "its header is truncated"),
            _ => Error::new(ErrorCode::Io, format!("{title}: {error}")),
        })?;
    Ok(bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn qcow2(file: &File, title: &str, interrupt: &Interrupt) -> Result<Option<Backing>, Error> {
    let header = read(file, title, 0, 72)?;
    let version = be32(&header, 4);
    let (header_len, features) = match version {
        2 => (72, 0),
        3 => {
            let rest = read(file, title, 72, 32)?;
            if be64(&rest, 0) & DATA_FILE != 0 {
                return Err(unsupported(title, "its data lies in another file"));
            }
            if be64(&rest, 0) & CORRUPT != 0 {
                return Err(damaged(title, "is marked as corrupt")
                    .with_hint("`qemu-img check -r all` repairs what can be repaired"));
            }
            (u64::from(be32(&rest, 28)), be64(&rest, 0))
        }
        _ => return Err(damaged(title, &format!("qcow2 has no version {version}"))),
    };
    check_tables(file, title, &header, features, interrupt)?;
    let (name_at, name_len) = (be64(&header, 8), be32(&header, 16));
    if name_at == 0 {
        return Ok(None);
    }
    if name_len > NAME_LEN_MAX {
        return Err(damaged(title, "the name of its backing file is too long"));
    }
    let name = read(
        file,
        title,
        name_at,
        usize::try_from(name_len).expect("short"),
    )?;
    let name = String::from_utf8(name)
        .map_err(|_binary| damaged(title, "the name of its backing file is not UTF-8"))?;
    let format = backing_format(file, title, header_len, name_at)?;
    Ok(Some(Backing { name, format }))
}

/// The format of the backing file, from the header's extensions, which end where the file's name begins.
fn backing_format(
    file: &File,
    title: &str,
    mut at: u64,
    end: u64,
) -> Result<Option<String>, Error> {
    for _ in 0..EXTENSIONS_MAX {
        if at.saturating_add(8) > end {
            return Ok(None);
        }
        let head = read(file, title, at, 8)?;
        let (kind, len) = (be32(&head, 0), be32(&head, 4));
        match kind {
            0 => return Ok(None),
            BACKING_FORMAT if len <= FORMAT_LEN_MAX => {
                let len = usize::try_from(len).expect("short");
                let name = read(file, title, at + 8, len)?;
                return Ok(Some(String::from_utf8_lossy(&name).into_owned()));
            }
            BACKING_FORMAT => {
                return Err(damaged(title, "the format of its backing file is too long"));
            }
            _ => at += 8 + u64::from(len).next_multiple_of(8),
        }
    }
    Err(damaged(title, "its header has too many extensions"))
}

/// Refuses an image whose tables lie beyond the end of the file: QEMU would read zeros there, and treat its data as holes.
fn check_tables(
    file: &File,
    title: &str,
    header: &[u8],
    features: u64,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let truncated = |what: &str| damaged(title, &format!("is truncated: {what} is missing"));
    let entry_len = if features & EXTENDED_L2 == 0 { 8 } else { 16 };
    let len = len_of(file, title)?;
    let (cluster_bits, entries, at) = (be32(header, 20), be32(header, 36), be64(header, 40));
    if !(9..=21).contains(&cluster_bits) || u64::from(entries) * 8 > L1_LEN_MAX {
        return Err(damaged(title, "its header says what no image can be"));
    }
    let cluster = 1_u64 << cluster_bits;
    let mut left = u64::from(entries) * 8;
    if at.checked_add(left).is_none_or(|end| end > len) {
        return Err(truncated("its first table"));
    }
    let mut at = at;
    // Bytes of second-level tables read so far. No table is read twice, whatever the first-level table contains.
    let mut tables_len = 0;
    while left > 0 {
        let part = left.min(L1_STEP);
        let table = read(file, title, at, usize::try_from(part).expect("short"))?;
        for entry in table.chunks_exact(8) {
            let table_at = be64(entry, 0) & L1_OFFSET;
            if table_at == 0 {
                continue;
            }
            if table_at + cluster > len {
                return Err(truncated("one of its tables"));
            }
            tables_len += cluster;
            if tables_len > len {
                return Err(damaged(title, "several of its tables lie in one place"));
            }
            interrupt.check()?;
            let cluster = usize::try_from(cluster).expect("at most 2 MiB");
            let clusters = read(file, title, table_at, cluster)?;
            let mut clusters = clusters.chunks_exact(entry_len);
            let end = |entry: &[u8]| compressed_end(be64(entry, 0), cluster_bits);
            // Old writers have not padded the last sector.
            if clusters.any(|entry| end(entry) >= len + SECTOR) {
                return Err(truncated("one of its compressed clusters"));
            }
        }
        (at, left) = (at + part, left - part);
    }
    Ok(())
}

/// Where the sectors of a compressed cluster end; 0 for a cluster that is not compressed.
fn compressed_end(entry: u64, cluster_bits: u32) -> u64 {
    if entry & COMPRESSED == 0 {
        return 0;
    }
    let offset_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let further_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    offset - offset % SECTOR + (further_sectors + 1) * SECTOR
}

/// Refuses an image of more than one file.
fn vmdk(file: &File, title: &str) -> Result<(), Error> {
    let header = read(file, title, 0, 44)?;
    if !header.starts_with(b"KDMV") {
        return Err(unsupported(title, "a VMDK of several files"));
    }
    let (capacity, at, sectors) = (le64(&header, 12), le64(&header, 28), le64(&header, 36));
    let len = sectors.saturating_mul(SECTOR);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if capacity == 0 || at != 1 || !(1..=DESCRIPTOR_LEN_MAX).contains(&len) {
        return Err(unsupported(title, "a VMDK without a description of itself"));
    }
    let text = read(file, title, SECTOR, len)?;
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let looked_at = PARENT_LEN.min(len_of(file, title)?.saturating_sub(SECTOR));
    let looked_at = usize::try_from(looked_at).expect("20 sectors");
    let looked_at = read(file, title, SECTOR, looked_at)?.to_ascii_lowercase();
    let names_parent = |bytes: &[u8]| {
        let mut parts = bytes.windows(PARENT.len());
        parts.any(|part| part == PARENT.as_bytes())
    };
    let value = |key: &str| {
        let mut lines = text
            .split(['\n', '\0'])
            .filter_map(|line| line.split_once('='));
        let found = lines.find(|(name, _)| name.trim() == key);
        found.map(|(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let has_parent = value("parentcid").is_some_and(|id| id != "ffffffff");
    if has_parent || names_parent(&looked_at) || names_parent(text.as_bytes()) {
        return Err(unsupported(
            title,
            "the VMDK of a snapshot: its data lies in other files too",
        ));
    }
    match value("createtype").as_deref() {
        Some("monolithicsparse" | "streamoptimized") => Ok(()),
        Some(other) => Err(unsupported(title, &format!("a VMDK of type {other}"))),
        None => Err(unsupported(title, "a VMDK without a type")),
    }
}

/// Refuses a differencing disk: QEMU reads it as a dynamic one, with zeros where the parent has the data.
fn vpc(file: &File, title: &str) -> Result<(), Error> {
    let len = usize::try_from(SECTOR).expect("512");
    let mut expected = VHD_DYNAMIC;
    let mut footer = read(file, title, 0, len)?;
    if !footer.starts_with(VHD_MARK) {
        let at = len_of(file, title)?.saturating_sub(SECTOR);
        (footer, expected) = (read(file, title, at, len)?, VHD_FIXED);
    }
    match be32(&footer, 60) {
        _ if !footer.starts_with(VHD_MARK) => Err(damaged(title, "has no footer")),
        VHD_DIFFERENCING => Err(unsupported(title, "a differencing disk")),
        kind if kind == expected => Ok(()),
        kind => Err(damaged(
            title,
            &format!("its footer has the type {kind}, not {expected}"),
        )),
    }
}

/// Refuses regions beyond the end of the file: QEMU treats a missing block table as an empty one.
fn vhdx(file: &File, title: &str) -> Result<(), Error> {
    let len = len_of(file, title)?;
    let table = read(file, title, REGIONS_AT, REGIONS_LEN)?;
    let count = usize::try_from(le32(&table, 8)).unwrap_or(usize::MAX);
    if !table.starts_with(b"regi") || count > (REGIONS_LEN - REGIONS_HEAD_LEN) / REGION_LEN {
        return Err(damaged(title, "has no table of its regions"));
    }
    let regions = table[REGIONS_HEAD_LEN..].chunks_exact(REGION_LEN);
    for region in regions.take(count) {
        let end = le64(region, 16).checked_add(u64::from(le32(region, 24)));
        if end.is_none_or(|end| end > len) {
            return Err(damaged(
                title,
                "is truncated: one of its regions is missing",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: &[u8], format: Format) -> Result<Option<Backing>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, content).unwrap();
        let interrupt = Interrupt::new().unwrap();
        backing(&File::open(path).unwrap(), "image", format, &interrupt)
    }

    /// A qcow2 header of version 3 with these incompatible features, one extension and the name of a backing file.
    fn header(features: u64, extension: &[u8], name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 3;
        bytes[23] = 16;
        bytes[72..80].copy_from_slice(&features.to_be_bytes());
        bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
        bytes.extend(BACKING_FORMAT.to_be_bytes());
        bytes.extend(u32::try_from(extension.len()).unwrap().to_be_bytes());
        bytes.extend(extension);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([0; 8]);
        let at = bytes.len() as u64;
        if !name.is_empty() {
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        }
        bytes.extend(name);
        bytes
    }

    #[test]
    fn names_of_other_files_are_found_in_a_qcow2() {
        let found = of(&header(0, b"raw", b"/etc/shadow"), Format::Qcow2).unwrap();
        let expected = Backing {
            name: "/etc/shadow".to_owned(),
            format: Some("raw".to_owned()),
        };
        assert_eq!(found, Some(expected));
        assert_eq!(of(&header(0, b"raw", b""), Format::Qcow2).unwrap(), None);
        let code = |content: &[u8]| of(content, Format::Qcow2).unwrap_err().code;
        assert_eq!(code(&header(DATA_FILE, b"", b"")), ErrorCode::Unsupported);
        assert_eq!(code(&header(CORRUPT, b"", b"")), ErrorCode::Damaged);
        assert_eq!(code(&header(0, b"", &[b'a'; 1024])), ErrorCode::Damaged);
        let whole = header(0, b"qcow2", b"base");
        assert_eq!(code(&whole[..whole.len() - 1]), ErrorCode::Damaged);
        assert_eq!(code(&whole[..71]), ErrorCode::Damaged);
        assert_eq!(code(b"QFI\xfb\0\0\0\x09"), ErrorCode::Damaged);
    }

    #[test]
    fn a_qcow2_has_all_of_its_tables() {
        let mut image = header(0, b"", b"");
        image.resize(3 << 16, 0);
        image[36..40].copy_from_slice(&2_u32.to_be_bytes());
        image[40..48].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        image[(1 << 16) + 8..][..8].copy_from_slice(&((1_u64 << 63) | 2 << 16).to_be_bytes());
        let of = |image: &[u8]| of(image, Format::Qcow2).map(drop);
        of(&image).unwrap();
        for (len, words) in [
            ((3 << 16) - 1, "one of its tables"),
            (2 << 16, "one of its tables"),
            ((1 << 16) + 15, "its first table"),
            (200, "its first table"),
        ] {
            let error = of(&image[..len]).unwrap_err();
            assert_eq!(error.code, ErrorCode::Damaged);
            assert!(error.message.contains(words), "{len}: {error}");
        }
        // A table that several entries name is not read once for each of them.
        let mut many = image.clone();
        many[36..40].copy_from_slice(&4_u32.to_be_bytes());
        for entry in 0..4 {
            many[(1 << 16) + entry * 8..][..8].copy_from_slice(&(2_u64 << 16).to_be_bytes());
        }
        let error = of(&many).unwrap_err();
        assert!(error.message.contains("in one place"), "{error}");
        // A compressed cluster of two sectors in the last table, that begins in the last sector but one.
        let at = (3_u64 << 16) - 1000;
        image[2 << 16..][..8].copy_from_slice(&((1 << 62) | 1 << 54 | at).to_be_bytes());
        of(&image).unwrap();
        let beyond = at + 1024;
        image[2 << 16..][..8].copy_from_slice(&((1 << 62) | 1 << 54 | beyond).to_be_bytes());
        assert!(of(&image).unwrap_err().message.contains("compressed"));
        image[36] = 0xff;
        assert_eq!(of(&image).unwrap_err().code, ErrorCode::Damaged);
    }

    #[test]
    fn a_vmdk_is_one_file_or_refused() {
        let of_vmdk = |description: &str, capacity: u64| {
            let mut bytes = vec![0; 1024];
            bytes[..4].copy_from_slice(b"KDMV");
            bytes[12..20].copy_from_slice(&capacity.to_le_bytes());
            bytes[28..36].copy_from_slice(&1_u64.to_le_bytes());
            bytes[36..44].copy_from_slice(&1_u64.to_le_bytes());
            bytes[512..][..description.len()].copy_from_slice(description.as_bytes());
            bytes
        };
        let vmdk = |description: &str, capacity: u64| {
            of(&of_vmdk(description, capacity), Format::Vmdk).map(drop)
        };
        let standalone = "CID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n";
        vmdk(standalone, 8).unwrap();
        vmdk(
            &standalone.replace("monolithicSparse", "streamOptimized"),
            8,
        )
        .unwrap();
        for (description, capacity) in [
            (standalone.to_owned(), 0),
            (standalone.replace("ffffffff", "1234abcd"), 8),
            (
                format!("{standalone}parentFileNameHint=\"/etc/shadow\"\n"),
                8,
            ),
            (standalone.replace("monolithicSparse", "monolithicFlat"), 8),
            (standalone.replace("createType", "madeType"), 8),
        ] {
            let error = vmdk(&description, capacity).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unsupported, "{description}");
        }
        // QEMU looks for a parent in twenty sectors, wherever the description ends and whatever stands before the word.
        for at in [200, 600, 10_200] {
            let mut bytes = of_vmdk(standalone, 8);
            bytes.resize(512 + 10_240, 0);
            bytes[512 + at..][..23].copy_from_slice(b"#parentFileNameHint=\"/x");
            let error = of(&bytes, Format::Vmdk).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unsupported, "{at}");
            bytes[512 + at + 1] = b'q';
            of(&bytes, Format::Vmdk).unwrap();
        }
        let mut elsewhere = of_vmdk(standalone, 8);
        elsewhere.extend_from_within(512..);
        of(&elsewhere, Format::Vmdk).unwrap();
        elsewhere[28] = 2;
        let error = of(&elsewhere, Format::Vmdk).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported);
        let alone = b"# Disk DescriptorFile\nRW 8 FLAT \"/etc/shadow\" 0 and some more bytes";
        assert_eq!(
            of(alone, Format::Vmdk).unwrap_err().code,
            ErrorCode::Unsupported
        );
    }
    #[test]
    fn a_vhd_is_a_whole_disk_or_refused() {
        let vpc = |at: usize, kind: u32| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + 8].copy_from_slice(VHD_MARK);
            bytes[at + 60..at + 64].copy_from_slice(&kind.to_be_bytes());
            of(&bytes, Format::Vpc).map(drop)
        };
        vpc(0, VHD_DYNAMIC).unwrap();
        vpc(4096 - 512, VHD_FIXED).unwrap();
        for at in [0, 4096 - 512] {
            let error = vpc(at, VHD_DIFFERENCING).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unsupported);
            assert!(error.message.contains("a differencing disk"), "{error}");
            assert_eq!(vpc(at, 5).unwrap_err().code, ErrorCode::Damaged);
        }
        assert_eq!(vpc(1024, VHD_FIXED).unwrap_err().code, ErrorCode::Damaged);
        assert_eq!(
            of(b"conectix", Format::Vpc).unwrap_err().code,
            ErrorCode::Damaged
        );
    }

    #[test]
    fn the_regions_of_a_vhdx_lie_in_its_file() {
        let vhdx = |count: u32, offset: u64| {
            let mut bytes = vec![0; 3 << 20];
            let at = usize::try_from(REGIONS_AT).unwrap();
            bytes[at..at + 4].copy_from_slice(b"regi");
            bytes[at + 8..at + 12].copy_from_slice(&count.to_le_bytes());
            let second = at + REGIONS_HEAD_LEN + REGION_LEN;
            bytes[second + 16..second + 24].copy_from_slice(&offset.to_le_bytes());
            bytes[second + 24..second + 28].copy_from_slice(&(1_u32 << 20).to_le_bytes());
            of(&bytes, Format::Vhdx).map(drop)
        };
        vhdx(2, 2 << 20).unwrap();
        vhdx(1, 3 << 20).unwrap();
        for (count, offset) in [(2, (2 << 20) + 1), (2, u64::MAX), (2048, 2 << 20)] {
            let error = vhdx(count, offset).unwrap_err();
            assert_eq!(error.code, ErrorCode::Damaged, "{count} {offset}");
        }
    }
}
