//! The owner records of a pool: which exist, how the first one is made, and their content for people.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use archipelago_protocol::date;

use super::name::Name;
use super::record::Record;
use crate::layout::Layout;

/// Most entries beside the record that are listed.
const STRAYS_MAX: usize = 100;

/// All records of a pool; the last one is the valid one.
pub(crate) fn names(layout: &Layout) -> io::Result<Vec<Name>> {
    let entries = match fs::read_dir(layout.owners()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().to_str().and_then(Name::parse));
    }
    names.sort_unstable();
    Ok(names)
}

/// The valid record.
pub(crate) fn latest(layout: &Layout) -> io::Result<Option<Name>> {
    Ok(names(layout)?.pop())
}

/// Makes the first record of a pool, without an owner, with its full length: then no start needs space for it. A record that another
/// process has just made is kept.
pub(crate) fn reserve(layout: &Layout) -> io::Result<()> {
    let made = DirBuilder::new().mode(0o700).create(layout.owners());
    made.or_else(|error| match error.kind() {
        ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })?;
    let path = layout.owner(Name::FIRST);
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let file = match made {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    };
    let written = Record::default()
        .write(&file)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(layout.owners())?.sync_all());
    if written.is_err() {
        let _gone = fs::remove_file(&path);
    }
    written
}

/// The part of a record that a heartbeat changes. The file is opened each time: then a client of NFS asks its server.
pub(crate) fn look(
    layout: &Layout,
    name: Name,
) -> io::Result<Option<(Option<Record>, SystemTime)>> {
    let file = match File::open(layout.owner(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let modified = file.metadata()?.modified()?;
    Ok(Some((Record::read(&file)?, modified)))
}

/// The owner in a record, for messages.
pub(crate) fn describe(layout: &Layout, name: Name) -> String {
    let Some(place) = name.place else {
        return "a node that has released it since".to_owned();
    };
    let record = look(layout, name)
        .ok()
        .flatten()
        .and_then(|(record, _)| record);
    // Until the owner has written its content, the record has that of its predecessor.
    match record.filter(|record| record.incarnation == name.incarnation) {
        Some(record) => format!(
            "host `{}`, process {}, with its sockets in `{}`, since {}, last heartbeat {} by its clock",
            record.host,
            record.process,
            record.node.display(),
            date(record.since),
            date(record.heartbeat)
        ),
        None => format!(
            "process {} of a host that has not written its name",
            place.process
        ),
    }
}

/// Entries beside the owner record of the pool in `directory`; not all if there are many.
///
/// # Errors
/// The error of the file system.
pub fn stray_records(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let layout = Layout::new(directory);
    let latest = latest(&layout)?.map(|name| layout.owner(name));
    let entries = match fs::read_dir(layout.owners()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut strays = Vec::new();
    for entry in entries.take(STRAYS_MAX) {
        let path = entry?.path();
        if Some(&path) != latest.as_ref() {
            strays.push(path);
        }
    }
    strays.sort_unstable();
    Ok(strays)
}
