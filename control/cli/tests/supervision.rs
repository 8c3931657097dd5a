//! Faults that only inform, and the supervision of processes: a full run directory, a log that grows, a process that cannot live.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;

    use nix::poll::{PollTimeout, poll};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::Value;

    use crate::harness::{Node, PLACEMENTS, may_mount, run, wait_for};

    /// Waits until all processes serve; the status then.
    fn wait_serving(node: &Node, what: &str) -> Value {
        wait_for(what, || {
            let status = node.status();
            let processes = status["processes"].as_array().unwrap();
            let serve = processes.iter().all(|process| process["serving"] == true);
            serve.then_some(status)
        })
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
        if !may_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mut node = Node::init(placement);
            node.mount_tmpfs("run", "8m");
            node.done(&["node", "start"]);
            node.done(&["volume", "create", "a", "--size", "64M"]);
            node.done(&["volume", "attach", "a"]);
            let before = wait_serving(&node, "a node that serves");
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
                wait_for("processes that were started again", || {
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
            let after = wait_serving(&node, "the node that serves again, with room");
            assert_eq!(after["pid"], before["pid"], "{placement}: the same daemon");
            wait_for("the count of what could not be written", || {
                node.log()
                    .contains("lines of this log could not be written: No space left on device")
                    .then_some(())
            });
            assert!(!node.log().contains("panicked"), "{}", node.log());
        }
    }

    #[test]
    fn a_daemon_that_is_killed_as_it_starts_is_reported_and_so_is_a_log_that_cannot_be_written() {
        if !may_mount() {
            return;
        }
        let mut node = Node::init("fused");
        node.mount_tmpfs("run", "1m");
        // The command starts the daemon that is beside it.
        let programs = node.path("programs");
        std::fs::create_dir(&programs).unwrap();
        let command = programs.join("archipelago");
        std::fs::copy(env!("CARGO_BIN_EXE_archipelago"), &command).unwrap();
        let daemon = programs.join("archipelagod");
        std::fs::write(&daemon, "#!/bin/sh\nkill -9 $$\n").unwrap();
        std::fs::set_permissions(&daemon, Permissions::from_mode(0o755)).unwrap();
        let start = || {
            let mut start = Command::new(&command);
            let output = run(start.arg("--root").arg(node.root()).args(["node", "start"]));
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let killed = "did not start: it ended (signal: 9 (SIGKILL)) before it could say why";
        let said = start();
        assert!(
            said.contains(killed) && said.contains("its log: "),
            "{said}"
        );
        assert!(node.log().contains(killed), "{}", node.log());
        let mut log = File::options()
            .append(true)
            .open(node.path("run/archipelagod.log"))
            .unwrap();
        fill(&node.path("run/filler"));
        while log.write_all(b"\n").is_ok() {}
        let said = start();
        assert!(
            said.contains(killed) && said.contains("its log could not be written"),
            "{said}"
        );
        assert!(said.contains("hint: make room for "), "{said}");
    }

    #[test]
    fn the_log_of_a_node_has_a_bound_and_all_processes_go_on_in_it() {
        let node = Node::init("split");
        node.done(&["node", "start"]);
        let path = node.path("run/archipelagod.log");
        let mut log = File::options().append(true).open(&path).unwrap();
        writeln!(log, "the first line").unwrap();
        for _ in 0..9 {
            log.write_all(&[b'x'; 1 << 20]).unwrap();
        }
        writeln!(log).unwrap();
        wait_for("a log that was cut", || {
            (std::fs::metadata(&path).unwrap().len() < 1 << 20).then_some(())
        });
        let kept = std::fs::read_to_string(node.path("run/archipelagod.log.1")).unwrap();
        assert!(kept.contains("the first line") && kept.contains("serving"));
        let before = wait_serving(&node, "a node that serves");
        kill_all(&before);
        wait_for("lines of the daemon", || {
            node.log().contains("process died").then_some(())
        });
        wait_for("lines of a data process", || {
            node.log().contains("blocker[").then_some(())
        });
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    }

    #[test]
    fn the_status_says_why_a_process_does_not_serve_and_each_volume_is_attached_once_afterwards() {
        const LIVES: u64 = 4;
        const VOLUMES: [&str; 3] = ["a", "b", "c"];
        for placement in PLACEMENTS {
            let node = Node::init(placement);
            node.done(&["node", "start"]);
            for name in VOLUMES {
                node.done(&["volume", "create", name, "--size", "64M"]);
                node.done(&["volume", "attach", name]);
            }
            let before = wait_serving(&node, "a node that serves");
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
            let original = std::fs::read(&marker).unwrap();
            std::fs::write(&marker, "version = 9\n").unwrap();
            kill_all(&before);
            let status = wait_for("lives that cannot begin, and why", || {
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
                    wait_for("the next life of the endpoint", || {
                        let now = pids(&node.status());
                        (now.last() != pid.last()).then_some(())
                    });
                }
            }
            std::fs::write(&marker, original).unwrap();
            let after = wait_serving(&node, "a node that serves again");
            let ended = reasons(&after, "last_end");
            assert!(!ended.is_empty(), "{after}");
            assert!(reasons(&after, "reason").is_empty(), "{after}");
            let rounds = || {
                node.log()
                    .matches("3 of 3 attached volumes are served")
                    .count()
            };
            wait_for("volumes that are attached again", || {
                (rounds() > 0).then_some(())
            });
            // Another round would come within moments: each of its requests takes about a millisecond.
            for _ in 0..25 {
                poll(&mut [], PollTimeout::from(20_u8)).unwrap();
            }
            assert_eq!(rounds(), 1, "{placement}: {}", node.log());
        }
    }
}
