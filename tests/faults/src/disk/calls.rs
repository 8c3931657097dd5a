//! What is called, on what, when: a call site; and what may become of it.

use std::fmt;
use std::path::Path;

/// What the file system is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Find a name; `open` and `stat` begin with it.
    Lookup,
    /// `stat`.
    Stat,
    /// Open a file that is there.
    Open,
    /// Make a file and open it.
    Create,
    /// Make a directory.
    MakeDirectory,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write that is durable when it is done.
    DurableWrite,
    /// Set the length.
    Resize,
    /// `fsync`, `fdatasync`.
    Sync,
    /// `fsync` of a directory.
    SyncNames,
    /// `syncfs`, which the kernel does not pass to a FUSE file system: the opening of the pool's directory stands for it.
    SyncPool,
    /// Open a directory.
    OpenDirectory,
    /// List a directory.
    List,
    /// Give a file another name.
    Rename,
    /// Remove a file.
    Unlink,
    /// Remove a directory.
    RemoveDirectory,
    /// Punch a hole, or allocate.
    Allocate,
    /// Close a file, which may still write.
    Close,
    /// Look for data.
    Seek,
    /// `statvfs`.
    StatPool,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The pool's directory.
    Pool,
    /// `pool.toml`.
    Marker,
    /// The lock, on which direct I/O is tried.
    Lock,
    /// The owner record, whatever its name is, and its directory.
    Owner,
    /// A directory of lineages, or of one.
    Directory,
    /// Blocks of a volume.
    Data,
    /// A volume's head.
    Head,
    /// A volume's log.
    Log,
    /// Pages of a volume's map.
    Pack,
    /// The catalogue's head.
    CatalogueHead,
    /// The catalogue's log.
    CatalogueLog,
    /// The catalogue's pages.
    CataloguePack,
}

impl Class {
    /// What the file at `path`, below the mounted directory, is for. The pool is its child.
    #[must_use]
    pub fn of(path: &Path) -> Class {
        let name = path.file_name().and_then(|name| name.to_str());
        let catalogue = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str())
            .is_some_and(|lineage| {
                lineage.len() == 32 && lineage.bytes().all(|digit| digit == b'0')
            });
        let kind = name.and_then(|name| name.split('-').next());
        let parent = path.parent().and_then(Path::file_name);
        if parent.is_some_and(|parent| parent == "owner") || kind == Some("owner") {
            return Class::Owner;
        }
        match (kind, catalogue) {
            (Some("pool"), _) => Class::Pool,
            (Some("pool.toml"), _) => Class::Marker,
            (Some("lock"), _) => Class::Lock,
            (Some("data"), _) => Class::Data,
            (Some("head"), false) => Class::Head,
            (Some("log"), false) => Class::Log,
            (Some("pack"), false) => Class::Pack,
            (Some("head"), true) => Class::CatalogueHead,
            (Some("log"), true) => Class::CatalogueLog,
            (Some("pack"), true) => Class::CataloguePack,
            _ => Class::Directory,
        }
    }
}

/// Which of the calls of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// The first.
    First,
    /// The one with this number, from 1 on.
    Number(u64),
}

/// A place in the life of a pool where the file system is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// What the client of the volume was doing.
    pub phase: &'static str,
    /// What was called.
    pub kind: Kind,
    /// On what.
    pub class: Class,
    /// Which time.
    pub call: Call,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.phase, self.kind, self.class)?;
        match self.call {
            Call::First => Ok(()),
            Call::Number(number) => write!(f, " {number}"),
        }
    }
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It fails with this number, having done nothing. A failed sync also drops what it should have made durable.
    Errno(i32),
    /// It moves a part only.
    Short,
    /// It moves a part only, and the next call of its kind on its file fails with EIO: the kernel continues short transfers
    /// of io_uring by itself, and reports the part only if it cannot.
    Part,
    /// It does not return until [`Disk::release`](super::Disk::release), if it is a write with nothing done before that.
    Never,
}

impl Fault {
    /// All faults that a call of `kind` can have.
    #[must_use]
    pub fn of(kind: Kind) -> Vec<Fault> {
        let errnos = [
            libc::EIO,
            libc::ENOSPC,
            libc::EDQUOT,
            libc::ESTALE,
            libc::ENOENT,
            libc::EMFILE,
            libc::EINTR,
        ];
        // What closes a file learns nothing from it.
        let errnos = if kind == Kind::Close {
            &errnos[..1]
        } else {
            &errnos[..]
        };
        let mut faults: Vec<Fault> = errnos.iter().copied().map(Fault::Errno).collect();
        if matches!(kind, Kind::Read | Kind::Write | Kind::DurableWrite) {
            faults.extend([Fault::Short, Fault::Part]);
        }
        faults.push(Fault::Never);
        faults
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Errno(errno) => {
                write!(f, "{:?}", nix::errno::Errno::from_raw(*errno))
            }
            Fault::Short => write!(f, "short"),
            Fault::Part => write!(f, "part"),
            Fault::Never => write!(f, "never"),
        }
    }
}
