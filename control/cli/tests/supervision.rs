//! Faults that only inform, and the supervision of processes: a full run directory, a log that grows, a process that cannot live.

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Duration;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::poll::{PollTimeout, poll};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, geteuid};
    use serde_json::Value;

    const PLACEMENTS: [&str; 2] = ["fused", "split"];
    /// How long anything may take before a test gives up.
    const DEADLINE: Duration = Duration::from_secs(30);
    const STEP_MS: u16 = 20;

    /// A node; its daemon is stopped when the test ends, and its run directory unmounted.
    struct Node {
        dir: tempfile::TempDir,
        mounted: bool,
    }

    impl Node {
        fn new(placement: &str) -> Node {
            let node = Node {
                dir: tempfile::tempdir().unwrap(),
                mounted: false,
            };
            node.done(&["init", "--placement", placement]);
            node
        }

        /// Mounts a file system of `len` as the run directory.
        fn mount_run(&mut self, len: &str) {
            let run = self.path("run");
            std::fs::create_dir_all(&run).unwrap();
            let options = format!("size={len},mode=700");
            let none: Option<&str> = None;
            let flags = MsFlags::empty();
            mount(none, &run, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
            self.mounted = true;
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn done(&self, arguments: &[&str]) -> String {
            let output = Command::new(env!("CARGO_BIN_EXE_archipelago"))
                .args(arguments)
                .env("ARCHIPELAGO_ROOT", self.dir.path())
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{arguments:?}: {output:?}\n{}",
                self.log()
            );
            String::from_utf8(output.stdout).unwrap()
        }

        fn status(&self) -> Value {
            serde_json::from_str(&self.done(&["--json", "node", "status"])).unwrap()
        }

        fn log(&self) -> String {
            let text = std::fs::read(self.path("run/archipelagod.log")).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        }

        /// Waits until `condition` holds, and says what it waited for and the log if it never does.
        fn wait<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
            for _ in 0..DEADLINE.as_millis() / u128::from(STEP_MS) {
                if let Some(found) = condition() {
                    return found;
                }
                poll(&mut [], PollTimeout::from(STEP_MS)).unwrap();
            }
            panic!("waited for {what}\n{}\n{}", self.status(), self.log());
        }

        /// Waits until all processes serve; the status then.
        fn wait_serving(&self, what: &str) -> Value {
            self.wait(what, || {
                let status = self.status();
                let processes = status["processes"].as_array().unwrap();
                let serve = processes.iter().all(|process| process["serving"] == true);
                serve.then_some(status)
            })
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let lock = std::fs::read_to_string(self.path("run/lock")).unwrap_or_default();
            let stopped = Command::new(env!("CARGO_BIN_EXE_archipelago"))
                .args(["node", "stop"])
                .env("ARCHIPELAGO_ROOT", self.dir.path())
                .output()
                .is_ok_and(|output| output.status.success());
            if let (false, Ok(pid)) = (stopped, lock.trim().parse()) {
                // Its children die with it.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if self.mounted {
                let _unmounted = umount2(&self.path("run"), MntFlags::MNT_DETACH);
            }
        }
    }

    fn pids(status: &Value) -> Vec<i32> {
        let processes = status["processes"].as_array().unwrap();
        let pid = |process: &Value| i32::try_from(process["pid"].as_i64().unwrap()).unwrap();
        processes.iter().map(pid).filter(|pid| *pid > 1).collect()
    }

    fn kill_all(status: &Value) {
        for pid in pids(status) {
            // One that has died with another is as good.
            let _killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Fills the file system of `path` to its last byte.
    fn fill(path: &Path) {
        let mut file = File::create(path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    #[test]
    fn a_process_that_dies_while_the_run_directory_is_full_is_started_again_and_the_log_goes_on() {
        if !geteuid().is_root() {
            println!("skipped: mounting a tmpfs needs root");
            return;
        }
        for placement in PLACEMENTS {
            let mut node = Node::new(placement);
            node.mount_run("8m");
            node.done(&["node", "start"]);
            node.done(&["volume", "create", "a", "--size", "64M"]);
            node.done(&["volume", "attach", "a"]);
            let before = node.wait_serving("a node that serves");
            let filler = node.path("run/filler");
            // The log has no room either: its last page is filled with it.
            let log = File::options()
                .append(true)
                .open(node.path("run/archipelagod.log"));
            let mut log = log.unwrap();
            fill(&filler);
            while log.write_all(b"\n").is_ok() {}
            for _ in 0..3 {
                kill_all(&node.status());
                node.wait("processes that were started again", || {
                    let now = node.status();
                    let restarted = now["processes"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .all(|process| process["restarts"].as_u64() > Some(0));
                    restarted.then_some(())
                });
            }
            std::fs::remove_file(&filler).unwrap();
            let after = node.wait_serving("the node that serves again, with room");
            assert_eq!(after["pid"], before["pid"], "{placement}: the same daemon");
            node.wait("the count of what could not be written", || {
                node.log()
                    .contains("lines of this log could not be written: No space left on device")
                    .then_some(())
            });
            assert!(!node.log().contains("panicked"), "{}", node.log());
        }
    }

    #[test]
    fn the_log_of_a_node_has_a_bound_and_all_processes_go_on_in_it() {
        let node = Node::new("split");
        node.done(&["node", "start"]);
        let path = node.path("run/archipelagod.log");
        let mut log = File::options().append(true).open(&path).unwrap();
        writeln!(log, "the first line").unwrap();
        for _ in 0..9 {
            log.write_all(&[b'x'; 1 << 20]).unwrap();
        }
        writeln!(log).unwrap();
        node.wait("a log that was cut", || {
            (std::fs::metadata(&path).unwrap().len() < 1 << 20).then_some(())
        });
        let kept = std::fs::read_to_string(node.path("run/archipelagod.log.1")).unwrap();
        assert!(kept.contains("the first line") && kept.contains("serving"));
        let before = node.wait_serving("a node that serves");
        kill_all(&before);
        node.wait("lines of the daemon", || {
            node.log().contains("process died").then_some(())
        });
        node.wait("lines of a data process", || {
            node.log().contains("blocker[").then_some(())
        });
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    }

    #[test]
    fn the_status_says_why_a_process_does_not_serve_and_each_volume_is_attached_once_afterwards() {
        const LIVES: u64 = 4;
        const VOLUMES: [&str; 3] = ["a", "b", "c"];
        for placement in PLACEMENTS {
            let node = Node::new(placement);
            node.done(&["node", "start"]);
            for name in VOLUMES {
                node.done(&["volume", "create", name, "--size", "64M"]);
                node.done(&["volume", "attach", name]);
            }
            let before = node.wait_serving("a node that serves");
            let reasons = |status: &Value, field: &str| {
                let processes = status["processes"].as_array().unwrap().clone();
                processes
                    .into_iter()
                    .filter(|process| !process[field].is_null())
                    .collect::<Vec<_>>()
            };
            assert!(reasons(&before, "reason").is_empty(), "{before}");
            assert!(reasons(&before, "last_end").is_empty(), "{before}");

            // No life of the blocker can begin; in the split placement the others are killed beside it.
            let marker = node.path("pool/pool.toml");
            let good = std::fs::read(&marker).unwrap();
            std::fs::write(&marker, "version = 9\n").unwrap();
            kill_all(&before);
            let status = node.wait("lives that cannot begin, and why", || {
                let status = node.status();
                let processes = reasons(&status, "reason");
                let tried = processes.iter().any(|process| {
                    process["restarts"].as_u64() >= Some(LIVES)
                        && process["reason"].as_str().unwrap().contains("pool.toml")
                        && process["last_end"]["reason"] == process["reason"]
                        && process["serving"] == false
                });
                tried.then_some(status)
            });
            let text = node.done(&["node", "status"]);
            assert!(
                text.contains("RESTARTS  ENDED SECONDS AGO  REASON") && text.contains("pool.toml"),
                "{text}\n{status}"
            );
            if placement == "split" {
                // The endpoint dies meanwhile: each of its lives asks for what is attached.
                for _ in 0..LIVES {
                    let pid = pids(&node.status());
                    kill(Pid::from_raw(*pid.last().unwrap()), Signal::SIGKILL).unwrap();
                    node.wait("the next life of the endpoint", || {
                        let now = pids(&node.status());
                        (now.last() != pid.last()).then_some(())
                    });
                }
            }
            std::fs::write(&marker, good).unwrap();
            let after = node.wait_serving("a node that serves again");
            let ended = reasons(&after, "last_end");
            assert!(!ended.is_empty(), "{after}");
            assert!(reasons(&after, "reason").is_empty(), "{after}");
            let rounds = || {
                node.log()
                    .matches("3 of 3 attached volumes are served")
                    .count()
            };
            node.wait("volumes that are attached again", || {
                (rounds() > 0).then_some(())
            });
            // Another round would come within moments: each of its requests takes about a millisecond.
            for _ in 0..25 {
                poll(&mut [], PollTimeout::from(STEP_MS)).unwrap();
            }
            assert_eq!(rounds(), 1, "{placement}: {}", node.log());
        }
    }
}
