//! Access to the sockets of the node for the endpoint's user and for clients, through directories that root owns.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use archipelago_api::layout::{BULK_SOCKET, Layout, path_error};
use archipelago_host::Identity;
use archipelago_protocol::Error;
use nix::unistd::{getegid, geteuid};

use crate::socket::unlink;

/// Gives the directory of volumes' sockets to the endpoint's user, or back to this process's user; the directories exist. The endpoint and
/// its clients may traverse the run directory, so they reach the peers' sockets; other files there keep their owners and modes.
///
/// # Errors
/// As [`path_error`].
pub(crate) fn give_sockets_to(layout: &Layout, endpoint: Option<Identity>) -> Result<(), Error> {
    let set = |path: &Path, uid: u32, gid: u32, mode: u32| {
        // In this order, because a change of the owner may clear mode bits.
        chown(path, Some(uid), Some(gid))
            .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(|error| path_error(path, &error))
    };
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let volumes = layout.volumes();
    match endpoint {
        Some(user) => {
            // The set-group-ID bit gives new sockets the group, without the right to change owners. Front ends are not in the user's group:
            // they can traverse `run`, but cannot open a socket of a peer.
            let (run, others, mode) = match user.front_ends {
                None => (0o2710, user.gid, 0o700),
                Some(group) => (0o2711, group, 0o2710),
            };
            set(layout.run(), uid, user.gid, run)?;
            set(&volumes, user.uid, others, mode)
        }
        None => {
            let found = std::fs::metadata(&volumes);
            let owner = found.map_err(|error| path_error(&volumes, &error))?.uid();
            if owner == uid {
                return Ok(());
            }
            set(&volumes, uid, gid, 0o700)
        }
    }
}

/// Removes the sockets that killed data processes have left for volumes; no running process of this node serves them. A socket that cannot
/// be removed stays and does no harm.
pub(crate) fn remove_stale_sockets(layout: &Layout) {
    let Ok(entries) = std::fs::read_dir(layout.volumes()) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path
            .extension()
            .is_some_and(|extension| extension == BULK_SOCKET)
        {
            unlink(&path);
        }
    }
}

/// Lets the endpoint's user traverse `directory` to the sockets in it, with no other right.
///
/// # Errors
/// As [`path_error`].
pub(crate) fn let_through(directory: &Path, endpoint: Identity) -> Result<(), Error> {
    chown(directory, None, Some(endpoint.gid))
        .and_then(|()| std::fs::set_permissions(directory, Permissions::from_mode(0o2710)))
        .map_err(|error| path_error(directory, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_opened_volumes_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(dir.path())).unwrap();
        layout.make_directories().unwrap();
        let lineage = archipelago_protocol::Lineage(7);
        let stale = layout.bulk_socket(lineage);
        let kept = [
            layout.volume_socket(lineage),
            layout.volumes().join("7.lost"),
        ];
        for path in kept.iter().chain([&stale]) {
            std::fs::write(path, "").unwrap();
        }
        remove_stale_sockets(&layout);
        assert!(!stale.exists() && kept.iter().all(|path| path.exists()));
    }

    #[test]
    fn sockets_are_given_to_the_endpoints_user_and_taken_back() {
        if !geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(&dir.path().join("node"))).unwrap();
        layout.make_directories().unwrap();
        let of = |path: &Path| {
            let found = path.metadata().unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        let mut user = Identity {
            uid: 64_001,
            gid: 64_002,
            front_ends: None,
        };
        for (front_ends, run, group, mode) in [
            (None, 0o2710, 64_002, 0o700),
            (Some(64_003), 0o2711, 64_003, 0o2710),
        ] {
            user.front_ends = front_ends;
            give_sockets_to(&layout, Some(user)).unwrap();
            assert_eq!(of(layout.run()), (0, 64_002, run));
            assert_eq!(of(&layout.volumes()), (64_001, group, mode));
            let group = getegid().as_raw();
            assert_eq!(of(&layout.journals()), (0, group, 0o700), "as it was");
        }
        give_sockets_to(&layout, None).unwrap();
        assert_eq!(of(&layout.volumes()), (0, getegid().as_raw(), 0o700));
    }
}
