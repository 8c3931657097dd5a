//! Paths of the files of a pool that last until the host reboots: sockets of its processes, presence journals, grants, reservations.
//!
//! | pool | sockets, grants and reservations | journals |
//! |---|---|---|
//! | the first one | `run/` | `run/journal/` |
//! | each other | `run/pools/NAME/` | `run/pools/NAME/journal/` |
//!
//! The sockets of volumes are in `run/volume/` for all pools.
//!
//! Invariant: as long as the run directory exists, the journals of a pool keep their path. So the name of the first pool is stored in the
//! state directory, which outlives a reboot: a node that had one pool, of whatever name, may have more pools at its next start. A pool that
//! has had its own directory does not become the first one.

use std::path::{Path, PathBuf};

use archipelago_api::durable;
use archipelago_api::layout::{Layout, SOCKET_PATH_MAX, make_directory};
use archipelago_host::Identity;
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode, Name};

use super::directories::let_through;

/// Longest name of a socket in a pool's directory.
const SOCKET_NAME_LEN: usize = "/control-endpoint.sock".len();

/// The paths of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolPaths {
    run: PathBuf,
    /// Whether the pool is the first one: then `run` is the node's run directory itself.
    is_first: bool,
}

impl PoolPaths {
    /// The paths of the pool `name` of the node at `layout`, whose first pool is `first`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if the name is too long for a path of a socket.
    pub(crate) fn new(layout: &Layout, name: &Name, first: &Name) -> Result<PoolPaths, Error> {
        let is_first = name == first;
        if is_first {
            return Ok(PoolPaths {
                run: layout.run().to_owned(),
                is_first,
            });
        }
        let run = PoolPaths::further(layout, name);
        let len = run.as_os_str().len();
        if len + SOCKET_NAME_LEN > SOCKET_PATH_MAX {
            let message = format!(
                "pool name `{name}`: `{}` has {len} bytes, sockets in it need a path of at most {}",
                run.display(),
                SOCKET_PATH_MAX - SOCKET_NAME_LEN
            );
            return Err(Error::new(ErrorCode::Invalid, message)
                .with_hint("choose a shorter name, or a root directory with a shorter path"));
        }
        Ok(PoolPaths { run, is_first })
    }

    /// The directory of the pool `name` if it is not the first one.
    pub(crate) fn further(layout: &Layout, name: &Name) -> PathBuf {
        layout.run().join("pools").join(name.as_str())
    }

    /// Creates the directories, and lets the endpoint's user traverse them to the sockets.
    pub(crate) fn make(&self, endpoint: Option<Identity>) -> Result<(), Error> {
        make_directory(&self.run)?;
        make_directory(&self.journals())?;
        make_directory(&self.reservations())?;
        if let (Some(user), false) = (endpoint, self.is_first) {
            let above = self.run.parent().into_iter();
            for directory in above.chain([self.run.as_path()]) {
                let_through(directory, user)?;
            }
        }
        Ok(())
    }

    /// Directory of the sockets of the pool's processes.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// Directory of the presence journals of the pool's open volumes.
    pub(crate) fn journals(&self) -> PathBuf {
        self.run.join("journal")
    }

    /// File of the volumes of the pool that an endpoint with its own user may open.
    pub(crate) fn grants(&self) -> PathBuf {
        self.run.join("grants.json")
    }

    /// File of the reservations of processes that have volumes of the pool open, with the incarnation of the pool's owner for which they
    /// hold.
    pub(crate) fn reservations(&self) -> PathBuf {
        self.run.join("reserved")
    }

    /// Control socket of the process that hosts `role` first.
    pub(crate) fn control_socket(&self, role: Role) -> PathBuf {
        self.run.join(format!("control-{}.sock", role.name()))
    }

    /// The name of a process of the pool `name` in logs and messages.
    pub(crate) fn title(&self, name: &Name, roles: &[Role]) -> String {
        let roles: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        let roles = roles.join("+");
        if self.is_first {
            roles
        } else {
            format!("`{name}` {roles}")
        }
    }
}

/// The first pool of the node at `layout`: the previous first pool, if the node still has it; else `default` or another pool, of those that
/// have no files in their own directory. If all have, the previous one remains the first, and the node does not contain it.
pub(crate) fn first_pool<'a>(
    layout: &Layout,
    pools: impl Iterator<Item = &'a Name> + Clone,
) -> Name {
    let path = layout.state().join("first-pool");
    let noted = std::fs::read_to_string(&path).unwrap_or_default();
    let noted: Option<Name> = noted.trim().parse().ok();
    if let Some(noted) = &noted
        && pools.clone().any(|name| name == noted)
    {
        return noted.clone();
    }
    let free = pools
        .clone()
        .filter(|name| !PoolPaths::further(layout, name).exists());
    let default = || archipelago_api::config::default_pool(pools.clone()).ok();
    let first = default()
        .filter(|default| free.clone().any(|name| name == *default))
        .or_else(|| free.clone().next())
        .cloned();
    let first = match (first, noted) {
        (Some(first), _) => first,
        (None, Some(former)) => return former,
        (None, None) => default()
            .or_else(|| pools.clone().next())
            .expect("a checked configuration has a pool")
            .clone(),
    };
    // The record is needed only once there is another pool, so an error is not a reason not to serve this one.
    if let Err(error) = durable::replace(&path, format!("{first}\n").as_bytes()) {
        tracing::warn!("{}: the first pool was not noted: {error}", path.display());
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pool_keeps_its_places_when_others_come() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(dir.path())).unwrap();
        layout.make_directories().unwrap();
        let names = |names: &[&str]| -> Vec<Name> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let first = |pools: &[&str]| {
            let pools = names(pools);
            first_pool(&layout, pools.iter()).to_string()
        };
        assert_eq!(first(&["fast"]), "fast");
        assert_eq!(first(&["default", "fast", "a"]), "fast", "as before");
        assert_eq!(first(&["default", "a"]), "default");
        // Its journals stay where they are when the first one goes.
        std::fs::create_dir_all(layout.run().join("pools/a")).unwrap();
        assert_eq!(first(&["a"]), "default");
        assert_eq!(first(&["a", "b"]), "b");
        assert_eq!(first(&["a", "b", "default"]), "b", "as before");
        let [a, b] = names(&["a", "b"]).try_into().unwrap();
        let paths = PoolPaths::new(&layout, &a, &a).unwrap();
        assert_eq!(paths.journals(), layout.journals());
        assert_eq!(paths.title(&a, &[Role::Mapper]), "mapper");
        let paths = PoolPaths::new(&layout, &b, &a).unwrap();
        assert!(paths.journals().ends_with("run/pools/b/journal"));
        assert_eq!(paths.title(&b, &[Role::Mapper]), "`b` mapper");
        let long: Name = "x".repeat(100).parse().unwrap();
        assert!(PoolPaths::new(&layout, &long, &long).is_ok());
        let error = PoolPaths::new(&layout, &long, &a).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
    }
}
