//! The user that a data process runs as, where it is not the daemon's.
//!
//! Invariants
//! - Taken on before the process serves, opens or creates anything, by its first thread: threads that come later have it.
//! - All of it or none: no supplementary group and no saved user is left to go back to.

use archipelago_protocol::{Error, ErrorCode};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{AccessFlags, Gid, Uid, access, getppid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A user, looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user; never root.
    pub uid: u32,
    /// The only group: whose members reach the peers' sockets, so it shall have none but the user.
    pub gid: u32,
    /// Whose members may connect to the sockets of volumes.
    pub front_ends: Option<u32>,
}

impl Identity {
    /// Mode bits of a volume's socket.
    #[must_use]
    pub fn socket_mode(self) -> u32 {
        self.front_ends.map_or(0o600, |_group| 0o660)
    }

    /// Makes this process one of the user's, for ever.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`] if the kernel refuses; [`ErrorCode::Unavailable`] if the parent dies meanwhile.
    pub fn take_on(self) -> Result<(), Error> {
        let failed = |what: &'static str| {
            move |errno: Errno| {
                Error::new(
                    ErrorCode::Internal,
                    format!("{what} of user {}: {errno}", self.uid),
                )
            }
        };
        let (parent, signal) = (getppid(), prctl::get_pdeathsig());
        let signal = signal.map_err(failed("PR_GET_PDEATHSIG"))?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&[]).map_err(failed("groups"))?;
        setresgid(gid, gid, gid).map_err(failed("group"))?;
        setresuid(uid, uid, uid).map_err(failed("user"))?;
        // A process that changes its user is not killed with its parent any more: prctl(2).
        prctl::set_pdeathsig(signal).map_err(failed("PR_SET_PDEATHSIG"))?;
        if signal.is_some() && getppid() != parent {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the daemon died while this process started",
            ));
        }
        Ok(())
    }

    /// Whether this process, which has taken it on, reaches `directory` and may make files there.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] naming the directory, with what to do.
    pub fn check_reach(self, directory: &Path) -> Result<(), Error> {
        access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
            Error::new(
                ErrorCode::Invalid,
                format!(
                    "endpoint.user {} does not reach {}: {errno}",
                    self.uid,
                    directory.display()
                ),
            )
            .with_hint(
                "each directory above it must let that user through: `chmod o+x` those that do not",
            )
        })
    }
}
