//! The command line. Others script against it: names, options and exit codes are fixed.

use std::ffi::OsString;
use std::path::PathBuf;

use archipelago_api::config::Placement;
use archipelago_api::layout::ROOT_VARIABLE;
use archipelago_protocol::{Label, LabelFilter, LabelKey, Name, ObjectSize, OnFull};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::checksum::Checksum;
use crate::format::{Compression, Format};
use crate::size::{object_size, volume_size};

const AFTER: &str = "Names are 1 to 255 of A-Z a-z 0-9 . _ @ : + -, not starting with a dot or dash; volumes, snapshots and images share one
name space, whatever their pool. Sizes are bytes, or a number with K M G T P or KiB..PiB (powers of 1024), or with KB..PB
(powers of 1000): multiples of 512, up to 1 PiB.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists already, 5 in use, 6 no space, 7 damaged data, 8 unsupported format.";

/// Formats of disk images.
const FORMATS: &str = "raw|qcow2|vmdk|vpc|vhdx";

/// How a policy for a full pool is written.
const ON_FULL: &str = "wait[:SECONDS]|report";

/// Thin volumes for virtual machines: instant clones and snapshots, attached over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "archipelago", version, after_help = AFTER)]
pub struct Options {
    /// Root directory of the node, also $ARCHIPELAGO_ROOT [default: /etc, /run and /var/lib/archipelago]
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
    /// Create the configuration, the directories and the first pool of a new node
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
    /// Unmount a directory, also if the process that served it has died
    Umount {
        /// The mount point
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Many NBD exports at one address or socket
    #[command(subcommand)]
    Nbd(Nbd),
    /// Disks of Ganeti's instances on this node
    #[command(subcommand)]
    Ganeti(Ganeti),
    /// Check a pool for damage, missing and leaked objects, with the node running or stopped
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

/// Commands of NBD servers of their own.
#[derive(Debug, Subcommand)]
pub enum Nbd {
    /// Serve volumes, snapshots and images as NBD exports, on TCP or at one UNIX socket, in the foreground until SIGTERM or SIGINT; prints where it listens when it accepts connections
    Serve(ServeNbd),
}

/// Options of `nbd serve`.
#[derive(Debug, Args)]
pub struct ServeNbd {
    /// Names to serve; a single name is also the default export. Without names: every volume, snapshot and image of the node
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,
    /// IP address to listen at, and port [default port: 10809]
    #[arg(long, value_name = "ADDR[:PORT]", required_unless_present = "socket")]
    pub listen: Option<String>,
    /// UNIX socket to listen at, in place of an address: made, and open to its owner alone
    #[arg(long, value_name = "PATH", conflicts_with_all = ["listen", "tls_certificate", "insecure"])]
    pub socket: Option<PathBuf>,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Require TLS: the server's certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Require client certificates signed by one of these certificate authorities, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// Serve other hosts without encryption: anyone who can reach the port can read and write
    #[arg(long, conflicts_with = "tls_certificate")]
    pub insecure: bool,
}

/// Commands of the external storage provider for Ganeti, which `archipelago-ganeti` carries out.
#[derive(Debug, Subcommand)]
pub enum Ganeti {
    /// Put the provider and the QEMU wrapper where Ganeti looks, and print the commands to run on the cluster's master; may be repeated: updates what differs, and keeps settings that are not given
    Install {
        /// The provider's directory [default: /usr/share/ganeti/extstorage/archipelago]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The directory of Ganeti's logs of providers [default: /var/log/ganeti/extstorage]
        #[arg(long, value_name = "DIR")]
        log_dir: Option<PathBuf>,
        /// QEMU binary that the wrapper executes [default: /usr/bin/kvm, else /usr/bin/qemu-system-x86_64]
        #[arg(long, value_name = "FILE")]
        qemu: Option<PathBuf>,
        /// Ganeti's state directory [default: /var/lib/ganeti]
        #[arg(long, value_name = "DIR")]
        ganeti_state: Option<PathBuf>,
    },
    /// Take away what was installed, and only that; volumes stay
    Uninstall {
        /// The provider's directory [default: /usr/share/ganeti/extstorage/archipelago]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Check what is installed and what it needs: QEMU, the node, Ganeti; exit 1 if anything is wrong
    Check {
        /// The provider's directory [default: /usr/share/ganeti/extstorage/archipelago]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The directory of Ganeti's logs of providers [default: /var/log/ganeti/extstorage]
        #[arg(long, value_name = "DIR")]
        log_dir: Option<PathBuf>,
    },
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
    /// Give other users access; the files still belong to this user
    #[arg(long)]
    pub allow_other: bool,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The pool [default: the only one, or the one named `default`]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<Name>,
    /// Delete orphans and finish pending deletes; the node must be stopped
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
    /// Stop the daemon; returns when requests in flight are complete and all volumes are closed
    Stop,
    /// Show the processes, the channels between them and what is attached
    Status,
}

/// How a node opens its pool.
#[derive(Debug, Clone, Copy, Args)]
pub struct Opening {
    /// Take over the pool from a node on another host that has not released it; that node must no longer be able to write to it
    #[arg(long)]
    pub take_over: bool,
}

/// A pool on RADOS. `archipelago-rados`, which serves it, belongs beside archipelagod.
#[derive(Debug, Args)]
pub struct RadosOptions {
    /// A replicated RADOS pool, in place of a directory
    #[arg(long, value_name = "POOL", conflicts_with = "dir")]
    pub rados: Option<String>,
    /// Another RADOS pool for what volumes hold
    #[arg(long, value_name = "POOL", requires = "rados")]
    pub data_pool: Option<String>,
    /// The namespace in both pools [default: none]
    #[arg(long, value_name = "NAME", requires = "rados")]
    pub namespace: Option<String>,
    /// Ceph's configuration file [default: where Ceph looks for one]
    #[arg(long, value_name = "FILE", requires = "rados")]
    pub ceph_conf: Option<PathBuf>,
    /// The client of the cluster, without `client.` [default: admin]
    #[arg(long, value_name = "ID", requires = "rados")]
    pub client: Option<String>,
    /// The file with the client's key [default: where Ceph's configuration says]
    #[arg(long, value_name = "FILE", requires = "rados")]
    pub keyring: Option<PathBuf>,
}

/// Commands on pools.
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// List the pools
    List,
    /// Show a pool, and what it stores
    Info {
        /// The pool
        name: Name,
    },
    /// Add a pool to the running node; returns when its volumes are served
    Add {
        /// Its name
        name: Name,
        /// An empty directory, or one that is a pool already
        #[arg(long, value_name = "DIR", required_unless_present = "rados")]
        dir: Option<PathBuf>,
        /// Or a RADOS pool
        #[command(flatten)]
        rados: RadosOptions,
        /// How it is opened
        #[command(flatten)]
        opening: Opening,
    },
    /// Take over a pool of the running node that another node has not released; that node must no longer be able to write to it
    TakeOver {
        /// The pool
        name: Name,
    },
    /// Remove an empty pool from the running node; its directory is kept
    Remove {
        /// The pool
        name: Name,
        /// Remove a pool that is not served, even if it is not empty; `pool add` brings it back with its contents
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
        /// What guest writes do when the pool is full: wait without limit, wait SECONDS and then fail, or fail at once [default: wait]
        #[arg(long, value_name = ON_FULL)]
        on_full: Option<OnFull>,
        /// A label, may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<Label>,
    },
    /// Make a snapshot of a volume, which may be running
    Snapshot {
        /// The volume
        volume: Name,
        /// Name of the snapshot
        name: Name,
        /// A label, may be repeated; those of the volume are not inherited
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<Label>,
    },
    /// Make a writable volume from a snapshot or image
    Clone {
        /// A snapshot or image
        source: Name,
        /// Name of the clone
        name: Name,
        /// Its size, at least the source's
        #[arg(long, value_parser = volume_size)]
        size: Option<u64>,
        /// What guest writes do when the pool is full [default: the policy of the source]
        #[arg(long, value_name = ON_FULL)]
        on_full: Option<OnFull>,
        /// A label, may be repeated; those of the source are not inherited
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<Label>,
    },
    /// List volumes, snapshots and images
    List {
        /// Show parents and clones as a tree
        #[arg(long)]
        tree: bool,
        /// Only what has this label, of any value or of this one
        #[arg(long, value_name = "KEY[=VALUE]")]
        label: Option<LabelFilter>,
    },
    /// Show a volume, snapshot or image, and the space that it takes
    Info {
        /// Its name
        name: Name,
    },
    /// List the ranges in which a volume, snapshot or image differs from a snapshot or image; without --from, all that have data
    Diff {
        /// Its name
        name: Name,
        /// The snapshot or image to compare with
        #[arg(long, value_name = "SNAP")]
        from: Option<Name>,
    },
    /// Resize a volume; a running guest is notified
    Resize {
        /// The volume
        name: Name,
        /// The new size
        #[arg(value_parser = volume_size)]
        size: u64,
        /// Allow shrinking a detached volume: data beyond the new size is lost
        #[arg(long)]
        force: bool,
    },
    /// Label a volume, snapshot or image, or change the policy of a volume, at once also for a running guest
    #[command(
        group = ArgGroup::new("change").required(true).multiple(true),
        override_usage = "archipelago volume set [OPTIONS] <NAME> [KEY=VALUE]..."
    )]
    Set {
        /// Its name
        name: Name,
        /// Labels to set. Keys are 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit; values, up to 255 bytes without control
        /// characters, may be empty
        #[arg(value_name = "KEY=VALUE", group = "change")]
        labels: Vec<Label>,
        /// A label to remove, may be repeated; one that is not there is no error
        #[arg(long, value_name = "KEY", group = "change")]
        unset: Vec<LabelKey>,
        /// What guest writes do when the pool is full: wait without limit, wait SECONDS and then fail, or fail at once
        #[arg(long, value_name = ON_FULL, group = "change")]
        on_full: Option<OnFull>,
    },
    /// Rename a volume, snapshot or image
    Rename {
        /// The old name
        old: Name,
        /// The new name
        new: Name,
        /// The pool, if the old name exists in two pools
        #[arg(long)]
        pool: Option<Name>,
    },
    /// Roll a detached volume back to one of its snapshots: what was written since is lost unless another snapshot has it
    Rollback {
        /// The volume
        name: Name,
        /// A snapshot of it; all snapshots are kept
        snapshot: Name,
    },
    /// Remove a volume, snapshot or image; its clones are kept
    Remove {
        /// Its name
        name: Name,
    },
    /// Attach a volume as a socket, a file or a block device, and print its path; the same command again prints the same path
    Attach {
        /// The volume, or a snapshot or image, which is read-only
        name: Name,
        /// For virtual machines: a vhost-user-blk device, the default
        #[arg(long, conflicts_with_all = ["nbd", "ublk", "fuse", "block"])]
        vhost_user: bool,
        /// For NBD clients (qemu-img, nbdcopy, the kernel's nbd-client): an export with the volume's name, which is also the default export
        #[arg(long, conflicts_with_all = ["queues", "ublk", "fuse", "block"])]
        nbd: bool,
        /// For this host itself: a block device of its kernel, /dev/ublkbN (Linux 6.5, the module ublk_drv, root)
        #[arg(long, conflicts_with_all = ["queues", "fuse", "block"])]
        ublk: bool,
        /// For programs on this host that read and write files: a file, through FUSE
        #[arg(long, conflicts_with_all = ["queues", "block"])]
        fuse: bool,
        /// For this host itself: a block device by ublk, NBD or a loop, the first that it has; needs root
        #[arg(long, conflicts_with = "queues")]
        block: bool,
        /// Request queues of a vhost-user device [default: 1]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(archipelago_api::types::QUEUES_MAX)))]
        queues: Option<u16>,
        /// Refuse writes. A read-only volume may have several attachments at once, and no writer meanwhile
        #[arg(long)]
        read_only: bool,
        /// Add one more attachment of the same kind, read-only, for another virtual machine
        #[arg(long)]
        another: bool,
    },
    /// Detach a volume; the options select one of several attachments
    Detach {
        /// The volume
        name: Name,
        /// The attachment with this number, from `volume attachments`
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
    /// List attachments: kind, path, and whether a client is connected
    Attachments {
        /// This volume only
        name: Option<Name>,
    },
}

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Make an image from a file, a device or a URL
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
    /// Format of the source; give raw for anything that a guest could have written [default: detected from the content]
    #[arg(long, value_enum, value_name = FORMATS)]
    pub format: Option<Format>,
    /// Also read the backing files that the image names; without this option such an image is refused
    #[arg(long)]
    pub backing: bool,
    /// Refuse a source with a different checksum
    #[arg(long, value_name = "sha256:HEX")]
    pub checksum: Option<Checksum>,
    /// Size of its objects: a power of two from 64K to 32M
    #[arg(long, value_name = "SIZE", value_parser = object_size)]
    pub object_size: Option<ObjectSize>,
    /// The pool [default: the only one, or the one named `default`]
    #[arg(long)]
    pub pool: Option<Name>,
    /// A label, may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<Label>,
}

/// Options of `image export`.
#[derive(Debug, Args)]
pub struct Export {
    /// What to copy
    pub name: Name,
    /// A file, which is replaced; for raw also a device, or - for the standard output
    pub file: OsString,
    /// Format of the target
    #[arg(long, value_enum, value_name = FORMATS, default_value_t = Format::Raw)]
    pub format: Format,
    /// Compress a qcow2
    #[arg(long, value_enum, value_name = "zlib|zstd", num_args = 0..=1, require_equals = true, default_missing_value = "zlib")]
    pub compress: Option<Compression>,
}
