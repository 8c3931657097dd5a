//! The method by which `--block` creates a block device: the first one of [`MEANS`] that this host supports.

use std::path::Path;

use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode, Name};

use super::super::pool::Pool;
use super::super::{nbd, ublk};

/// A method to create a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    /// The kernel's ublk driver: requests go to the pool's endpoint, and are not lost when it dies.
    Ublk,
    /// The kernel's NBD client, connected to the pool's endpoint: requests are not lost when the endpoint dies.
    Nbd,
    /// The volume as a file, and the kernel's loop driver over it.
    Loop,
}

/// In the order in which they are tried, the best first.
const MEANS: [Means; 3] = [Means::Ublk, Means::Nbd, Means::Loop];

impl Means {
    /// Why this host does not support the method.
    async fn hindrance(self) -> Option<String> {
        let why = match self {
            Means::Ublk => return ublk::check().await.err().map(|error| error.message),
            Means::Nbd => return nbd::check().await.err().map(|error| error.message),
            Means::Loop if !Path::new("/dev/fuse").exists() => "no /dev/fuse: modprobe fuse",
            Means::Loop if !Path::new("/dev/loop-control").exists() => {
                "no /dev/loop-control: modprobe loop"
            }
            Means::Loop if !nix::unistd::geteuid().is_root() => {
                "loop devices need a node of root's"
            }
            Means::Loop => return None,
        };
        Some(why.to_owned())
    }
}

impl Pool {
    /// The block device for `name`, as attachment `id`.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] if this host supports none of the methods.
    pub(crate) async fn block_device(
        &self,
        id: AttachmentId,
        name: &Name,
    ) -> Result<EndpointSpec, Error> {
        let mut missing = Vec::new();
        for means in MEANS {
            if let Some(why) = means.hindrance().await {
                missing.push(why);
                continue;
            }
            return Ok(match means {
                Means::Ublk => ublk::endpoint(ublk::free_number(self.attachments().ublk_devices())),
                Means::Nbd => nbd::endpoint(
                    nbd::free_number(self.attachments().nbd_devices()),
                    self.context.layout.further_nbd_socket(id),
                ),
                Means::Loop => self.local_device(id, name)?,
            });
        }
        let message = format!(
            "this host cannot provide a block device: {}",
            missing.join("; ")
        );
        Err(Error::new(ErrorCode::Unsupported, message)
            .with_hint("`volume attach --nbd` serves the kernel's nbd-client"))
    }
}
