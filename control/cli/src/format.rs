//! Formats of disk images, and how a file is recognised.

use std::fs::File;
use std::os::unix::fs::FileExt;

use clap::ValueEnum;
use serde::Serialize;

/// Bytes at the beginning of a file that contain the magic number of each format.
const MARK_LEN: usize = 20;
/// Bytes at the end of a fixed VHD, which has no other mark.
const VHD_FOOTER_LEN: u64 = 512;

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The bytes of the disk, nothing else.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file.
    Vmdk,
    /// Microsoft's older one, VHD.
    #[value(alias = "vhd")]
    Vpc,
    /// Microsoft's newer one.
    Vhdx,
}

/// How the clusters of a qcow2 are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Read by every version of QEMU.
    Zlib,
    /// Faster; read by QEMU 5.1 and later.
    Zstd,
}

impl Format {
    /// Its name, which is QEMU's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vpc => "vpc",
            Format::Vhdx => "vhdx",
        }
    }

    /// The format named `name`, if it is one of these.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Format> {
        let all = [
            Format::Raw,
            Format::Qcow2,
            Format::Vmdk,
            Format::Vpc,
            Format::Vhdx,
        ];
        all.into_iter().find(|format| format.name() == name)
    }

    /// The format that the content of `file`, of `len` bytes, looks like. The writer of the content controls the result: a guest can make
    /// its raw disk look like any format.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn detect(file: &File, len: u64) -> std::io::Result<Format> {
        let mut mark = [0; MARK_LEN];
        let there = usize::try_from(len).unwrap_or(MARK_LEN).min(MARK_LEN);
        file.read_exact_at(&mut mark[..there], 0)?;
        let found = [
            (b"QFI\xfb".as_slice(), Format::Qcow2),
            (b"KDMV", Format::Vmdk),
            (b"COWD", Format::Vmdk),
            (b"# Disk Descripto", Format::Vmdk),
            (b"conectix", Format::Vpc),
            (b"vhdxfile", Format::Vhdx),
        ]
        .into_iter()
        .find(|(start, _)| mark.starts_with(start));
        if let Some((_, format)) = found {
            return Ok(format);
        }
        if let Some(footer) = len.checked_sub(VHD_FOOTER_LEN) {
            let mut mark = [0; 8];
            file.read_exact_at(&mut mark, footer)?;
            if mark == *b"conectix" {
                return Ok(Format::Vpc);
            }
        }
        Ok(Format::Raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_at_the_start_and_at_the_end_and_short_files_are_raw() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let detect = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            let file = File::open(&path).unwrap();
            Format::detect(&file, content.len() as u64).unwrap()
        };
        let mut fixed = vec![7; 4096];
        fixed[4096 - 512..][..8].copy_from_slice(b"conectix");
        for (content, format) in [
            (b"".as_slice(), Format::Raw),
            (b"QFI", Format::Raw),
            (b"QFI\xfb", Format::Qcow2),
            (b"KDMV\x01\0\0\0 and so on, and so on", Format::Vmdk),
            (b"# Disk DescriptorFile\nversion=1\n", Format::Vmdk),
            (b"vhdxfileQ\0E\0M\0U\0", Format::Vhdx),
            (&fixed, Format::Vpc),
            (&fixed[..4095], Format::Raw),
        ] {
            assert_eq!(detect(content), format, "{content:?}");
        }
        for format in Format::value_variants() {
            assert_eq!(Format::of_name(format.name()), Some(*format));
        }
    }
}
