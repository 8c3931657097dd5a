//! Names of a pool's files: lists them, and makes them durable. For threads that may block.

use std::fs::{self, File};
use std::io;

use archipelago_protocol::Lineage;

use crate::descriptors::retry_while_exhausted;
use crate::errors::Failed;
use crate::layout::{FileId, Layout, parse};
use crate::stall_detector::Progress;

/// Makes the names of a lineage's files durable. After any failure they may not be.
pub(crate) fn sync_names(layout: &Layout, lineage: Lineage) -> Result<(), Failed> {
    let own = layout.lineage(lineage);
    for directory in own
        .ancestors()
        .take_while(|path| path.starts_with(layout.directory()))
    {
        let directory =
            retry_while_exhausted(|| File::open(directory)).map_err(|error| Failed {
                lost: false,
                ..Failed::sync(&error)
            })?;
        directory.sync_all().map_err(|error| Failed::sync(&error))?;
    }
    Ok(())
}

/// Whether there is no directory for the lineage: nothing, or a foreign file.
fn is_no_directory(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The files of `lineage`, in order; none if it has no directory.
pub(crate) fn files_of(layout: &Layout, lineage: Lineage) -> io::Result<Vec<FileId>> {
    let entries = match retry_while_exhausted(|| fs::read_dir(layout.lineage(lineage))) {
        Ok(entries) => entries,
        Err(error) if is_no_directory(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        files.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| parse(lineage, name)),
        );
    }
    files.sort_unstable();
    Ok(files)
}

/// The lineages that have a directory, in no order.
pub(crate) fn lineages(layout: &Layout, progress: &Progress) -> io::Result<Vec<Lineage>> {
    let mut lineages = Vec::new();
    for shard in retry_while_exhausted(|| fs::read_dir(layout.directory()))? {
        progress.step();
        let shard = shard?;
        if shard.file_name().len() != 2 || !shard.file_type()?.is_dir() {
            continue;
        }
        for directory in retry_while_exhausted(|| fs::read_dir(shard.path()))? {
            let directory = directory?;
            if !directory.file_type()?.is_dir() {
                // Not ours: `foreign_files` names it.
                continue;
            }
            let name = directory.file_name();
            lineages.extend(name.to_str().and_then(|name| name.parse::<Lineage>().ok()));
        }
    }
    Ok(lineages)
}
