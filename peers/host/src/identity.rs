//! The user that a data process runs as, if it is not the daemon's.
//!
//! Invariants
//! - The first thread takes it on before the process serves, opens or creates anything: later threads inherit it.
//! - It is taken on completely or not at all: no supplementary group and no saved user is left to return to.

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
    /// The only group. Its members can connect to the peers' sockets, so it shall have only the user.
    pub gid: u32,
    /// The group whose members may connect to the sockets of volumes.
    pub front_ends: Option<u32>,
}

impl Identity {
    /// Mode bits of a volume's socket.
    #[must_use]
    pub fn socket_mode(self) -> u32 {
        self.front_ends.map_or(0o600, |_group| 0o660)
    }

    /// Changes the user of this process, for ever.
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
        // The kernel clears this setting when a process changes its user: prctl(2).
        prctl::set_pdeathsig(signal).map_err(failed("PR_SET_PDEATHSIG"))?;
        if signal.is_some() && getppid() != parent {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the daemon died while this process started",
            ));
        }
        Ok(())
    }

    /// Checks that this process, as this user, can reach `directory` and make files there.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`], naming the directory, with the remedy.
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
