//! The command line. Others script against it: names, options and exit codes are fixed.

use std::ffi::OsString;
use std::path::PathBuf;

use archipelago_api::config::Placement;
use archipelago_api::layout::ROOT_VARIABLE;
use archipelago_protocol::{Name, ObjectSize, OnFull};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::checksum::Checksum;
use crate::format::{Compression, Format};
use crate::size::{object_size, volume_size};

const AFTER: &str = "Names are 1 to 255 of A-Z a-z 0-9 . _ @ : + -, not starting with a dot or dash; volumes, snapshots and images share one
name space, whatever their pool. Sizes are bytes, or a number with K M G T P or KiB..PiB (powers of 1024), or with KB..PB
(powers of 1000): multiples of 512, up to 1 PiB.

Exit codes: 0 done, 1 failed, 2 usage, 3 no such thing, 4 exists already, 5 in use, 6 no space, 7 damaged data.";

/// Formats of disk images.
const FORMATS: &str = "raw|qcow2|vmdk|vpc|vhdx";

/// How a policy for a full pool is written.
const ON_FULL: &str = "wait[:SECONDS]|report";

/// Thin volumes for virtual machines: instant clones and snapshots, attached over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "archipelago", version, after_help = AFTER)]
pub struct Options {
    /// Directory that holds everything of the node, also $ARCHIPELAGO_ROOT; without either /etc, /run and /var/lib/archipelago
    // Not `env`: a variable that is set would make usage texts ask for the option.
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print one JSON object, errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Options {
    /// The root directory that was given: by the option, else by the environment.
    #[must_use]
    pub fn root(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(ROOT_VARIABLE).map(PathBuf::from);
        self.root.clone().or_else(variable)
    }
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a configuration and make its directories
    Init(Init),
    /// The node daemon
    #[command(subcommand)]
    Node(Node),
    /// Pools: where volumes are stored
    #[command(subcommand)]
    Pool(Pool),
    /// Volumes and snapshots
    #[command(subcommand)]
    Volume(Volume),
    /// Images: frozen, to be cloned from
    #[command(subcommand)]
    Image(Image),
    /// Show volumes, snapshots and images as files, through FUSE
    Mount(Mount),
    /// End a mount; also of one whose process has died
    Umount {
        /// Where it is
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// NBD on TCP
    #[command(subcommand)]
    Nbd(Nbd),
    /// Look for damage, missing and leaked objects in a pool, served or not
    Doctor(Doctor),
    /// Print the script that completes commands in a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write a manual page for each command into a directory, for packages
    Man {
        /// The directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Shells that complete commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash, with its package bash-completion or without
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Commands of NBD on TCP.
#[derive(Debug, Subcommand)]
pub enum Nbd {
    /// Serve volumes, snapshots and images as NBD exports on TCP, in the foreground until SIGTERM or SIGINT; says when it listens, and where
    Serve(ServeNbd),
}

/// Options of `nbd serve`.
#[derive(Debug, Args)]
pub struct ServeNbd {
    /// What to serve, by name; with one name, also the default export. Nothing: whatever a client asks for
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,
    /// IP address to listen at, and port [default port: 10809]
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub listen: String,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Encrypt: the certificate, and those between it and its authority, PEM; nothing is served without TLS then
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate of one of these authorities, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// Serve other hosts without encryption: whoever reaches the port reads and writes
    #[arg(long, conflicts_with = "tls_certificate")]
    pub insecure: bool,
}

/// Options of `mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// An empty directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Let other users in; the files stay this user's
    #[arg(long)]
    pub allow_other: bool,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The pool [default: the only one, or the one named `default`]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<Name>,
    /// Delete objects that provably nobody needs; the node must be stopped
    #[arg(long)]
    pub repair: bool,
}

/// Options of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Directory of the pool `default`
    #[arg(long, value_name = "DIR")]
    pub pool_dir: Option<PathBuf>,
    /// Where the peers run: fused (one data process) or split (a process each)
    #[arg(long, value_name = "fused|split", default_value_t = Placement::Fused)]
    pub placement: Placement,
}

/// Commands on the node.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Node {
    /// Run the daemon in the foreground
    Run(Opening),
    /// Start the daemon; returns when requests are served
    Start(Opening),
    /// Stop the daemon; returns when all is drained
    Stop,
    /// Show the processes, the channels between them and what is attached
    Status,
}

/// How a node opens its pool.
#[derive(Debug, Clone, Copy, Args)]
pub struct Opening {
    /// Take the pool over from a node of another host, which has not released it and does not write to it any more
    #[arg(long)]
    pub take_over: bool,
}

/// Commands on pools.
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// List the pools
    List,
    /// Show a pool
    Info {
        /// The pool
        name: Name,
    },
    /// Add a pool to a node that runs; its volumes are served when this returns
    Add {
        /// Its name
        name: Name,
        /// An empty directory, or one that is a pool already
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Take a pool that holds nothing out of a node that runs; its directory stays
    Remove {
        /// The pool
        name: Name,
        /// Take out a pool that is not served, whatever it holds; added again, it holds the same
        #[arg(long)]
        unserved: bool,
    },
}

/// Commands on volumes.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make an empty volume
    Create {
        /// Its name
        name: Name,
        /// Its size
        #[arg(long, value_parser = volume_size)]
        size: u64,
        /// The pool [default: the only one, or the one named `default`]
        #[arg(long)]
        pool: Option<Name>,
        /// Size of its objects: a power of two from 64K to 32M
        #[arg(long, value_name = "SIZE", value_parser = object_size)]
        object_size: Option<ObjectSize>,
        /// What its guest's writes do without space in the pool: wait for ever, wait for so many seconds and then fail, or fail at once [default: wait]
        #[arg(long, value_name = ON_FULL)]
        on_full: Option<OnFull>,
    },
    /// Make a snapshot of a volume, which may be running
    Snapshot {
        /// The volume
        volume: Name,
        /// Name of the snapshot
        name: Name,
    },
    /// Make a volume that begins as a snapshot or image
    Clone {
        /// A snapshot or image
        source: Name,
        /// Name of the clone
        name: Name,
        /// Its size, at least the source's
        #[arg(long, value_parser = volume_size)]
        size: Option<u64>,
        /// What its guest's writes do without space in the pool [default: as the source says]
        #[arg(long, value_name = ON_FULL)]
        on_full: Option<OnFull>,
    },
    /// List volumes, snapshots and images
    List {
        /// Show what was made from what
        #[arg(long)]
        tree: bool,
    },
    /// Show a volume, snapshot or image
    Info {
        /// Its name
        name: Name,
    },
    /// Give a volume another size; a running guest is told
    Resize {
        /// The volume
        name: Name,
        /// The new size
        #[arg(value_parser = volume_size)]
        size: u64,
        /// Allow to shrink a detached volume: what lies beyond is lost
        #[arg(long)]
        force: bool,
    },
    /// Change a volume; a running guest is served so at once
    Set {
        /// The volume
        name: Name,
        /// What its guest's writes do without space in the pool: wait for ever, wait for so many seconds and then fail, or fail at once
        #[arg(long, value_name = ON_FULL)]
        on_full: OnFull,
    },
    /// Give it another name
    Rename {
        /// The old name
        old: Name,
        /// The new name
        new: Name,
        /// The pool, if things in two pools have the old name
        #[arg(long)]
        pool: Option<Name>,
    },
    /// Remove a volume, snapshot or image; clones of it live on
    Remove {
        /// Its name
        name: Name,
    },
    /// Serve a volume at a socket, as a file or as a block device, and print its path; the same again prints the same
    Attach {
        /// The volume, or a snapshot or image, which is read-only
        name: Name,
        /// For virtual machines: a vhost-user-blk device, the default
        #[arg(long, conflicts_with_all = ["nbd", "ublk", "fuse", "block"])]
        vhost_user: bool,
        /// For whatever speaks NBD (qemu-img, nbdcopy, the kernel's nbd-client): an export of the volume's name, and the default one
        #[arg(long, conflicts_with_all = ["queues", "ublk", "fuse", "block"])]
        nbd: bool,
        /// For this host itself: a block device of its kernel, /dev/ublkbN (Linux 6.5, the module ublk_drv, root)
        #[arg(long, conflicts_with_all = ["queues", "fuse", "block"])]
        ublk: bool,
        /// For programs on this host that read and write files: a file, through FUSE
        #[arg(long, conflicts_with_all = ["queues", "block"])]
        fuse: bool,
        /// For this host itself: a block device, by the best means that its kernel has; needs root
        #[arg(long, conflicts_with = "queues")]
        block: bool,
        /// Request queues of a vhost-user device [default: 1]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(archipelago_api::types::QUEUES_MAX)))]
        queues: Option<u16>,
        /// Refuse writes. What is read-only may be attached in several ways at once, and beside it is no writer
        #[arg(long)]
        read_only: bool,
        /// One more of what is read-only and attached already: for a further virtual machine
        #[arg(long)]
        another: bool,
    },
    /// Serve a volume no longer; the options say which of several attachments
    Detach {
        /// The volume
        name: Name,
        /// The one of this number, which `volume attachments` shows
        #[arg(long, value_name = "N")]
        id: Option<u64>,
        /// The vhost-user-blk device
        #[arg(long, conflicts_with_all = ["nbd", "ublk", "fuse", "block"])]
        vhost_user: bool,
        /// The NBD export
        #[arg(long, conflicts_with_all = ["ublk", "fuse", "block"])]
        nbd: bool,
        /// The ublk device
        #[arg(long, conflicts_with_all = ["fuse", "block"])]
        ublk: bool,
        /// The file
        #[arg(long, conflicts_with = "block")]
        fuse: bool,
        /// The block device
        #[arg(long)]
        block: bool,
        /// The one at this path
        #[arg(long, value_name = "PATH")]
        at: Option<PathBuf>,
    },
    /// List what is attached: how, where, and whether somebody is connected
    Attachments {
        /// This volume only
        name: Option<Name>,
    },
}

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Make an image of a disk image, a device, or what is at an address
    Import(Import),
    /// Copy an image, a snapshot or a detached volume to a file or device
    Export(Export),
}

/// Options of `image import`.
#[derive(Debug, Args)]
pub struct Import {
    /// A file or device, - for the standard input, or an address (http, https)
    #[arg(value_name = "FILE|URL")]
    pub file: OsString,
    /// Name of the image
    pub name: Name,
    /// What it is, whatever it looks like; raw for all that a guest could have written to [default: what it looks like]
    #[arg(long, value_enum, value_name = FORMATS)]
    pub format: Option<Format>,
    /// Read the files too that the image names as its backing files; without this an image that names any is refused
    #[arg(long)]
    pub backing: bool,
    /// Refuse a file with another checksum
    #[arg(long, value_name = "sha256:HEX")]
    pub checksum: Option<Checksum>,
    /// Size of its objects: a power of two from 64K to 32M
    #[arg(long, value_name = "SIZE", value_parser = object_size)]
    pub object_size: Option<ObjectSize>,
    /// The pool [default: the only one, or the one named `default`]
    #[arg(long)]
    pub pool: Option<Name>,
}

/// Options of `image export`.
#[derive(Debug, Args)]
pub struct Export {
    /// What to copy
    pub name: Name,
    /// A file, which is replaced; for raw also a device, or - for the standard output
    pub file: OsString,
    /// What to make
    #[arg(long, value_enum, value_name = FORMATS, default_value_t = Format::Raw)]
    pub format: Format,
    /// Compress a qcow2
    #[arg(long, value_enum, value_name = "zlib|zstd", num_args = 0..=1, require_equals = true, default_missing_value = "zlib")]
    pub compress: Option<Compression>,
}
