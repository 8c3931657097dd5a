//! A kernel that refuses io_uring, by real seccomp filters and limits: `node start` says at once which call, and what to do.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::resource::{Resource, setrlimit};

    use nix::unistd::{Uid, geteuid};
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

    use crate::harness::{Node, run_within, skip};

    // The same numbers on every architecture.
    const SETUP: i64 = 425;
    const ENTER: i64 = 426;
    const REGISTER: i64 = 427;

    /// Set in the process that refuses itself something and becomes the command: number of the call, and the error.
    const CALL: &str = "ARCHIPELAGO_TEST_CALL";
    const ERRNO: &str = "ARCHIPELAGO_TEST_ERRNO";
    /// The command.
    const PROGRAM: &str = "ARCHIPELAGO_TEST_PROGRAM";
    /// Set if it may lock no memory.
    const NO_MEMLOCK: &str = "ARCHIPELAGO_TEST_NO_MEMLOCK";

    /// A refused start took a minute, and longer: that of `node start` itself.
    const DEADLINE: Duration = Duration::from_secs(30);
    /// In no table of users: a number will do.
    const USER: u32 = 61_234;
    /// Log lines of a refused start: those of the daemon, and of two lives of three processes.
    const LOG_LINES_MAX: usize = 40;

    /// Runs `command` to its end, within [`DEADLINE`].
    fn output(command: &mut Command) -> Output {
        run_within(command, DEADLINE)
    }

    /// `node start` of `program`, of whose tree the kernel refuses `call` with `errno`.
    fn start_without(node: &Node, call: i64, errno: Errno, program: &Path) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "tests::inside", "--nocapture"])
            .env("ARCHIPELAGO_ROOT", node.root())
            .env(PROGRAM, program)
            .env(CALL, call.to_string())
            .env(ERRNO, (errno as i32).to_string());
        command
    }

    /// What a refused start said; it must be in the log as well, in few lines.
    fn refused(node: &Node, command: &mut Command) -> String {
        let output = output(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        let log = node.log();
        assert!(log.lines().count() < LOG_LINES_MAX, "{log}");
        said
    }

    /// The process that becomes the command; a test only by the way that it is started.
    #[test]
    fn inside() {
        let Some(program) = std::env::var_os(PROGRAM) else {
            return;
        };
        let number = |name: &str| std::env::var(name).unwrap().parse::<i64>().unwrap();
        if std::env::var_os(NO_MEMLOCK).is_some() {
            setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
        } else {
            let filter = SeccompFilter::new(
                BTreeMap::from([(number(CALL), vec![])]),
                SeccompAction::Allow,
                SeccompAction::Errno(u32::try_from(number(ERRNO)).unwrap()),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            apply_filter(&program).unwrap();
        }
        let error = Command::new(program).args(["node", "start"]).exec();
        panic!("the command cannot be run: {error}");
    }

    fn own_program() -> PathBuf {
        env!("CARGO_BIN_EXE_archipelago").into()
    }

    #[test]
    fn a_refused_call_is_named_with_its_cure_at_once() {
        for placement in ["fused", "split"] {
            for (call, name) in [
                (SETUP, "io_uring_setup"),
                (ENTER, "io_uring_enter"),
                (REGISTER, "io_uring_register"),
            ] {
                let node = Node::init(placement);
                let said = refused(
                    &node,
                    &mut start_without(&node, call, Errno::EPERM, &own_program()),
                );
                for word in [name, "not permitted", "kernel.io_uring_disabled", "seccomp"] {
                    assert!(said.contains(word), "{placement}, {name}: {said}");
                }
                assert!(!node.log().contains("older"), "{}", node.log());
            }
        }
    }

    #[test]
    fn an_error_of_io_uring_enter_that_stays_is_one_line_of_the_process() {
        for errno in [Errno::EBADF, Errno::EINVAL, Errno::EFAULT, Errno::EAGAIN] {
            let node = Node::init("fused");
            let said = refused(
                &node,
                &mut start_without(&node, ENTER, errno, &own_program()),
            );
            assert!(said.contains("io_uring_enter"), "{errno}: {said}");
            let number = format!("os error {}", errno as i32);
            assert!(said.contains(&number), "{errno}: {said}");
            let log = node.log();
            let lines = log
                .lines()
                .filter(|line| line.contains(" data[") && line.contains("io_uring_enter"));
            // One of each life: the second begins before the daemon has understood the first.
            assert!((1..=2).contains(&lines.count()), "{errno}: {log}");
        }
    }

    #[test]
    fn without_locked_memory_a_plain_user_is_told_the_limit() {
        if !geteuid().is_root() {
            return skip("only root can become a plain user");
        }
        let node = Node::init("fused");
        let programs = node.root().join("programs");
        std::fs::create_dir(&programs).unwrap();
        let own = std::env::current_exe().unwrap();
        let beside = own.ancestors().nth(2).unwrap();
        for name in ["archipelago", "archipelagod"] {
            std::fs::copy(beside.join(name), programs.join(name)).unwrap();
        }
        // The test itself, too: whoever becomes the user must be able to run it.
        let inside = programs.join("inside");
        std::fs::copy(&own, &inside).unwrap();
        let user = format!("{USER}:{USER}");
        let mut chown = Command::new("chown");
        let owned = output(chown.args(["-R", &user]).arg(node.root()));
        assert!(owned.status.success(), "{owned:?}");
        std::fs::set_permissions(node.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(inside);
        command
            .args(["--exact", "tests::inside", "--nocapture"])
            .env("ARCHIPELAGO_ROOT", node.root())
            .env(PROGRAM, programs.join("archipelago"))
            .env(NO_MEMLOCK, "1")
            .current_dir("/")
            .uid(Uid::from_raw(USER).as_raw())
            .gid(USER);
        let output = output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            // From Linux 5.12 on: memory is charged to the control group instead.
            println!("skipped: this kernel counts no memory of io_uring");
            return;
        }
        for word in ["io_uring_", "ulimit -l", "LimitMEMLOCK"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(!node.log().contains("older"), "{}", node.log());
    }
}
