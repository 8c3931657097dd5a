//! Volumes attached on a real node, in every way.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use archipelago_crash_tests::node::Node;
use archipelago_protocol::Access;
use serde_json::Value;

use crate::disk::Disk;
use crate::disks::nbd::Nbd;
use crate::disks::posix::{Kind, Posix};
use crate::disks::segment::Segment;
use crate::disks::vhost_user::VhostUser;

/// A way into a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A vhost-user-blk device.
    VhostUser,
    /// An NBD export on a UNIX socket.
    Nbd,
    /// The segment channel of a process of one's own.
    Segment,
    /// A file, through FUSE.
    File,
    /// A block device of this host.
    Block,
}

impl Way {
    /// All of them.
    const ALL: [Way; 5] = [
        Way::VhostUser,
        Way::Nbd,
        Way::Segment,
        Way::File,
        Way::Block,
    ];

    /// Those that can be tested here; says why the others are not.
    ///
    /// # Panics
    /// With `$CI` set, if any cannot: there everything is to be had.
    #[must_use]
    pub fn here() -> Vec<Way> {
        let needs = |way: Way| -> Option<&'static str> {
            match way {
                Way::File | Way::Block if !Path::new("/dev/fuse").exists() => Some("/dev/fuse"),
                Way::File | Way::Block if !nix::unistd::geteuid().is_root() => Some("root"),
                Way::Block if !Path::new("/dev/loop-control").exists() => Some("loop devices"),
                _ => None,
            }
        };
        let is_here = |way: &Way| match needs(*way) {
            None => true,
            Some(what) => {
                assert!(std::env::var_os("CI").is_none(), "{way:?} needs {what}");
                eprintln!("skipped: {way:?} needs {what}");
                false
            }
        };
        Way::ALL.into_iter().filter(is_here).collect()
    }

    /// The endpoint's kind in the node's words; `None`: nothing is attached.
    #[must_use]
    pub fn kind(self) -> Option<&'static str> {
        match self {
            Way::VhostUser => Some("vhost-user"),
            Way::Nbd => Some("nbd"),
            Way::Segment => None,
            Way::File => Some("fuse"),
            Way::Block => Some("loop"),
        }
    }

    /// The option of `volume attach`; `None`: nothing is attached, the volume is opened.
    fn option(self) -> Option<&'static str> {
        match self {
            Way::VhostUser => Some("--vhost-user"),
            Way::Nbd => Some("--nbd"),
            Way::Segment => None,
            Way::File => Some("--fuse"),
            Way::Block => Some("--block"),
        }
    }
}

/// A volume, and where clients find it.
#[derive(Debug)]
pub struct Attached<'a> {
    node: &'a Node,
    name: String,
    way: Way,
    access: Access,
    /// Number and path of the attachment.
    place: Option<(u64, PathBuf)>,
}

impl<'a> Attached<'a> {
    /// Attaches `name`, for readers with `access` [`Access::Read`]; `options` are further ones of the command.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn new(
        node: &'a Node,
        way: Way,
        name: &str,
        access: Access,
        options: &[&str],
    ) -> Result<Attached<'a>> {
        let place = match way.option() {
            None => None,
            Some(option) => {
                let mut arguments = vec!["--json", "volume", "attach", name, option];
                if access == Access::Read {
                    arguments.push("--read-only");
                }
                arguments.extend(options);
                let attached: Value = serde_json::from_str(&node.call(&arguments)?)?;
                let id = attached["id"].as_u64().context("a number")?;
                let of_path = ["socket", "device", "file"].into_iter();
                let mut of_path = of_path.filter_map(|key| attached[key].as_str());
                let path = of_path.next().context("a path")?;
                Some((id, PathBuf::from(path)))
            }
        };
        Ok(Attached {
            node,
            name: name.to_owned(),
            way,
            access,
            place,
        })
    }

    /// Where it is; `None` of a volume that is only opened.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.place.as_ref().map(|(_, path)| path.as_path())
    }

    /// Number of the attachment.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.place.as_ref().map(|(id, _)| *id)
    }

    /// One more client.
    ///
    /// # Errors
    /// If none can be.
    pub fn connect(&self) -> Result<Box<dyn Disk>> {
        let path = self.path().context("nothing is attached");
        Ok(match self.way {
            Way::VhostUser => Box::new(VhostUser::connect(path?)?),
            Way::Nbd => Box::new(Nbd::connect(path?)?),
            Way::File => Box::new(Posix::open(path?, Kind::File, self.access)?),
            Way::Block => Box::new(Posix::open(path?, Kind::BlockDevice, self.access)?),
            Way::Segment => Box::new(Segment::open(self.node.root(), &self.name, self.access)?),
        })
    }

    /// Detaches it.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn detach(&self) -> Result<()> {
        if let Some(id) = self.id() {
            let id = id.to_string();
            self.node
                .call(&["volume", "detach", &self.name, "--id", &id])?;
        }
        Ok(())
    }
}
