//! What a data process may and may not do after it was confined, by trying it in a process of its own.

#[cfg(test)]
mod child;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::fs::{self, File};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use archipelago_doubles::MemoryBackend;
    use archipelago_host::{DataPathSettings, PeerSettings, Pool, Purpose, confine};
    use archipelago_protocol::Error;
    use archipelago_protocol::check::Report;
    use archipelago_protocol::control::Role;
    use archipelago_runtime::Reactor;
    use nix::errno::Errno;

    use crate::child::run_inside;

    /// Tells the program below where it is.
    const ROOT: &str = "CONFINED_IN";
    /// And what it is.
    const ROLES: &str = "CONFINED_ROLES";

    /// A pool whose files lie in a directory; none is opened here. One that is reached over the network has a key beside it.
    struct Directory {
        pool: PathBuf,
        key: Option<PathBuf>,
    }

    impl Pool for Directory {
        type Backend = MemoryBackend;
        type Joined = Infallible;

        fn directories(&self) -> Vec<&Path> {
            vec![&self.pool]
        }

        fn reads(&self) -> Vec<&Path> {
            self.key.iter().map(PathBuf::as_path).collect()
        }

        fn uses_network(&self) -> bool {
            self.key.is_some()
        }

        fn descriptors(&self, _limit: u64) -> u64 {
            0
        }

        fn join(_backend: &MemoryBackend) -> Option<Infallible> {
            None
        }

        fn open_joined(joined: Infallible, _reactor: &Reactor) -> Result<MemoryBackend, Error> {
            match joined {}
        }

        fn open(&self, _: &Reactor, _: Purpose, _: &Path) -> Result<MemoryBackend, Error> {
            Ok(MemoryBackend::new())
        }

        fn sharing(&self) -> archipelago_host::Sharing {
            archipelago_host::Sharing::Alone
        }

        fn look_for_foreign(&self, _report: &mut Report) {}
    }

    fn settings(root: &Path, over_network: bool) -> PeerSettings<Directory> {
        PeerSettings {
            node: root.join("run"),
            run: root.join("run"),
            volumes: root.join("run/volume"),
            journals: root.join("run/journal"),
            grants: root.join("run/grants.json"),
            data: DataPathSettings {
                threads: 1,
                cpus: Vec::new(),
                poll_us: 50,
                submission_chunk: 8,
                channel_requests: 1024,
                channel_memory_mib: 64,
            },
            endpoint: None,
            pool: Directory {
                pool: root.join("pool"),
                key: over_network.then(|| root.join("key")),
            },
        }
    }

    fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
        result
            .err()
            .map(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// Allowed, or refused as by the file system.
    fn expected(allowed: bool) -> Option<Errno> {
        (!allowed).then_some(Errno::EACCES)
    }

    /// The program that is confined; a test only by the way that it is started.
    #[test]
    fn inside() {
        let Some(root) = std::env::var_os(ROOT) else {
            return;
        };
        let root = Path::new(&root).to_owned();
        let named = std::env::var(ROLES).unwrap();
        let roles: Vec<Role> = match named.as_str() {
            "endpoint" | "endpoint of a cluster" => vec![Role::Endpoint],
            "blocker" | "blocker of a cluster" => vec![Role::Blocker],
            "mapper" => vec![Role::Mapper],
            _ => vec![Role::Endpoint, Role::Mapper, Role::Blocker],
        };
        let over_network = named.ends_with("of a cluster");
        confine(&roles, &settings(&root, over_network)).unwrap();
        let reaches_cluster = over_network && roles.contains(&Role::Blocker);
        // Threads that come later have it too.
        let tried = std::thread::spawn(move || try_all(&root, &roles, reaches_cluster));
        tried.join().unwrap();
    }

    fn try_all(root: &Path, roles: &[Role], reaches_cluster: bool) {
        // Files of others.
        assert_eq!(errno(fs::read("/etc/passwd")), Some(Errno::EACCES));
        assert_eq!(errno(fs::read_dir("/")), Some(Errno::EACCES));
        assert_eq!(
            errno(File::create(root.join("elsewhere"))),
            Some(Errno::EACCES)
        );
        // Files of a role are for that role.
        let write = |path: &str| errno(fs::write(root.join(path), b"x"));
        let read = |path: &Path| errno(fs::read(path));
        let blocker = expected(roles.contains(&Role::Blocker));
        assert_eq!(write("pool/object"), blocker);
        assert_eq!(read(&root.join("pool/secret")), blocker);
        let mapper = expected(roles.contains(&Role::Mapper));
        assert_eq!(write("run/journal/a"), mapper);
        let endpoint = roles == [Role::Endpoint];
        // What this host is called stands in journals and in the pool's owner record.
        let host = expected(!endpoint);
        assert_eq!(read(Path::new("/proc/sys/kernel/random/boot_id")), host);
        // Sockets.
        let bind = |path: &str| errno(UnixListener::bind(root.join(path)));
        assert_eq!(bind("run/a.sock"), expected(!endpoint));
        assert_eq!(bind("run/volume/a.sock"), None);
        assert_eq!(
            errno(UnixListener::bind(root.join("pool/a.sock"))),
            Some(Errno::EACCES)
        );
        let by_network = (!reaches_cluster).then_some(Errno::EPERM);
        assert_eq!(errno(TcpListener::bind("127.0.0.1:0")), by_network);
        let vsock = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Vsock,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None,
        );
        assert_eq!(vsock.err(), Some(Errno::EPERM));
        assert_eq!(read(&root.join("key")), expected(reaches_cluster));
        assert_eq!(read(&root.join("other-key")), Some(Errno::EACCES));
        // Programs, namespaces, mounts.
        assert_eq!(
            errno(Command::new("/bin/true").status()),
            Some(Errno::EPERM)
        );
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
        assert_eq!(unshared, Err(Errno::EPERM));
        let flags = nix::mount::MsFlags::empty();
        let mounted = nix::mount::mount(None::<&str>, root, Some("tmpfs"), flags, None::<&str>);
        assert_eq!(mounted, Err(Errno::EPERM));
        let capabilities = caps::read(None, caps::CapSet::Permitted).unwrap();
        assert!(capabilities.is_empty(), "{capabilities:?}");
        println!("all tried");
    }

    fn confined(roles: &str) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("run/journal")).unwrap();
        fs::create_dir(root.join("run/volume")).unwrap();
        fs::create_dir(root.join("pool")).unwrap();
        for secret in ["pool/secret", "key", "other-key"] {
            fs::write(root.join(secret), b"data").unwrap();
        }
        let said = run_inside(&[(ROOT, root), (ROLES, Path::new(roles))]);
        assert!(said.contains("all tried"), "{said}");
    }

    #[test]
    fn an_endpoint_reaches_no_pool_no_journal_no_network_and_no_program() {
        confined("endpoint");
    }

    #[test]
    fn a_mapper_reaches_its_journals_only() {
        confined("mapper");
    }

    #[test]
    fn a_blocker_reaches_its_pool_only() {
        confined("blocker");
    }

    #[test]
    fn a_blocker_of_a_cluster_reaches_the_network_and_its_key() {
        confined("blocker of a cluster");
    }

    #[test]
    fn an_endpoint_of_a_cluster_reaches_neither() {
        confined("endpoint of a cluster");
    }

    #[test]
    fn a_process_of_all_roles_reaches_what_they_reach() {
        confined("all");
    }
}
