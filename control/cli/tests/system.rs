//! The whole of it: a real daemon in a temporary directory, asked by the real command, in both placements.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;

    use archipelago_api::client::Method;
    use archipelago_segment::{VolumeClient, VolumeOptions};

    use archipelago_protocol::ErrorCode;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::harness::{Node, PLACEMENTS, wait};

    fn write(node: &Node, name: &str, parts: &[(u64, &[u8])], len: u64) -> String {
        let path = node.root().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(len).unwrap();
        for (offset, data) in parts {
            file.write_all_at(data, *offset).unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    fn exported(node: &Node, name: &str) -> Vec<u8> {
        let path = node.root().join("exported");
        node.done(&["image", "export", name, path.to_str().unwrap()]);
        std::fs::read(path).unwrap()
    }

    fn kill_process(pid: &Value) {
        let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
        assert!(pid > 1);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    fn pattern(seed: u8, len: usize) -> Vec<u8> {
        // 251 is a prime, so no two blocks near each other look alike.
        let numbers = (0..251_u8).cycle().take(len);
        numbers.map(|number| number.wrapping_add(seed)).collect()
    }

    #[test]
    fn volumes_live_through_all_commands() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&[
                "volume",
                "create",
                "a",
                "--size",
                "1G",
                "--object-size",
                "1M",
            ]);
            node.refused_as(&["volume", "create", "a", "--size", "1G"], 4, "exists");
            node.refused_as(
                &["volume", "create", "b", "--size", "1G", "--pool", "x"],
                3,
                "not-found",
            );
            node.done(&["volume", "snapshot", "a", "s"]);
            node.refused_as(&["volume", "snapshot", "a", "s"], 4, "exists");
            node.refused_as(&["volume", "snapshot", "s", "t"], 2, "invalid");
            node.done(&["volume", "clone", "s", "c", "--size", "2G"]);
            node.refused_as(&["volume", "clone", "a", "d"], 2, "invalid");
            node.refused_as(&["volume", "clone", "s", "d", "--size", "1M"], 2, "invalid");
            node.refused_as(&["volume", "clone", "nothing", "d"], 3, "not-found");
            let tree = node.done(&["volume", "list", "--tree"]);
            assert_eq!(
                tree,
                "a  (volume, 1G)\n└─ s  (snapshot, 1G)\n   └─ c  (volume, 2G)\n"
            );
            let socket = node.done(&["volume", "attach", "a", "--queues", "2"]);
            assert_eq!(node.done(&["volume", "attach", "a"]), socket);
            assert!(Path::new(socket.trim()).exists());
            node.refused_as(&["volume", "attach", "a", "--queues", "3"], 5, "in-use");
            let socket_of_snapshot = node.done(&["volume", "attach", "s"]);
            let info = node.json(&["volume", "info", "s"]);
            assert_eq!(info["attachments"][0]["read_only"], true, "frozen: {info}");
            assert_ne!(socket_of_snapshot, socket);
            node.done(&["volume", "detach", "s"]);
            node.refused_as(&["volume", "attach", "nothing"], 3, "not-found");
            node.refused_as(&["volume", "remove", "a"], 5, "in-use");
            node.refused_as(&["volume", "resize", "a", "512M", "--force"], 5, "in-use");
            node.done(&["volume", "resize", "a", "3G"]);
            node.done(&["volume", "rename", "a", "z"]);
            assert_eq!(node.json(&["volume", "info", "z"])["size"], 3_u64 << 30);
            node.refused_as(&["volume", "info", "a"], 3, "not-found");
            node.done(&["volume", "detach", "z"]);
            assert!(!Path::new(socket.trim()).exists());
            node.refused_as(&["volume", "detach", "z"], 3, "not-found");
            node.refused_as(&["volume", "resize", "z", "1G"], 2, "invalid");
            node.done(&["volume", "resize", "z", "1G", "--force"]);
            node.done(&["volume", "remove", "s"]);
            node.done(&["volume", "remove", "z"]);
            let list = node.json(&["volume", "list"]);
            let names: Vec<&Value> = list["volumes"].as_array().unwrap().iter().collect();
            assert_eq!(names.len(), 1, "{list}");
            assert_eq!(names[0]["name"], "c");
            assert_eq!(node.json(&["pool", "info", "default"])["entries"], 1);
        }
    }

    #[test]
    fn images_come_back_as_they_went_in() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let (first, last) = (pattern(1, 3_000_000), pattern(2, 777));
            let len = (40 << 20) + 777;
            let file = write(&node, "disk", &[(4096, &first), (40 << 20, &last)], len);
            node.done(&["image", "import", &file, "i"]);
            let mut expected = std::fs::read(&file).unwrap();
            expected.resize(expected.len().next_multiple_of(512), 0);
            assert!(exported(&node, "i") == expected);
            node.refused_as(&["image", "import", &file, "i"], 4, "exists");
            node.refused_as(&["image", "import", "/nonexistent", "j"], 3, "not-found");
            node.refused_as(&["image", "export", "i", "/"], 2, "invalid");
            let mut child = node
                .command(&["image", "import", "-", "p"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&expected).unwrap();
            assert!(child.wait().unwrap().success());
            assert!(node.output(&["image", "export", "p", "-"]).stdout == expected);
            node.done(&["volume", "clone", "i", "v"]);
            assert!(exported(&node, "v") == expected);
            node.done(&["volume", "snapshot", "v", "s"]);
            assert!(exported(&node, "s") == expected);
            // After a restart too: nothing of this was only in memory.
            node.restart();
            assert!(exported(&node, "s") == expected);
        }
    }

    #[test]
    fn a_killed_daemon_or_process_comes_back_with_everything() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let file = write(&node, "disk", &[(0, &pattern(3, 1_000_000))], 8 << 20);
            node.done(&["image", "import", &file, "i"]);
            node.done(&["volume", "clone", "i", "v"]);
            let socket = node.done(&["volume", "attach", "v"]);
            let count = node.json(&["node", "status"])["processes"]
                .as_array()
                .unwrap()
                .len();
            assert_eq!(count, if placement == "fused" { 1 } else { 3 });
            for index in 0..count {
                let before = node.json(&["node", "status"])["processes"][index].clone();
                kill_process(&before["pid"]);
                wait("a new life", || {
                    let process = &node.json(&["node", "status"])["processes"][index];
                    process["restarts"] == 1 && process["serving"] == true
                });
                wait("the socket", || Path::new(socket.trim()).exists());
                assert_eq!(node.done(&["volume", "attach", "v"]), socket, "{before}");
                assert!(exported(&node, "i") == std::fs::read(&file).unwrap());
            }
            let status = node.json(&["node", "status"]);
            kill_process(&status["pid"]);
            wait("the children's end", || {
                status["processes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|process| !Path::new(&format!("/proc/{}", process["pid"])).exists())
            });
            node.done(&["node", "start"]);
            assert_eq!(node.done(&["volume", "attach", "v"]), socket);
            assert!(exported(&node, "i") == std::fs::read(&file).unwrap());
        }
    }

    #[test]
    fn a_second_daemon_hears_who_holds_the_node() {
        let node = Node::start("fused");
        let pid = node.json(&["node", "status"])["pid"].to_string();
        node.refused_as(&["node", "start"], 5, "in-use");
        let output = node.output(&["node", "run"]);
        assert_eq!(output.status.code(), Some(5));
        assert!(String::from_utf8_lossy(&output.stderr).contains(&pid));
        let error = node.refused_as(&["node", "run"], 5, "in-use");
        assert!(error["message"].as_str().unwrap().contains(&pid));
        node.done(&["node", "stop"]);
        node.done(&["node", "stop"]);
        node.refused_as(&["node", "status"], 1, "unavailable");
    }

    #[test]
    fn damaged_run_state_is_named_and_nothing_starts() {
        let node = Node::start("fused");
        node.done(&["node", "stop"]);
        std::fs::write(node.root().join("state/attachments.json"), "{").unwrap();
        node.refused_as(&["node", "start"], 7, "damaged");
        std::fs::remove_file(node.root().join("state/attachments.json")).unwrap();
        node.done(&["node", "start"]);
    }

    #[test]
    fn a_damaged_catalogue_is_named_and_left_alone() {
        let node = Node::start("fused");
        node.done(&["node", "stop"]);
        let catalogue = format!("pool/00/{}/head", "0".repeat(32));
        let path = node.root().join(catalogue);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..100]).unwrap();
        let error = node.refused_as(&["node", "start"], 7, "damaged");
        assert_eq!(error["message"], "head of the catalogue is damaged");
        assert!(!error["hint"].as_str().unwrap().is_empty());
        assert_eq!(std::fs::read(&path).unwrap(), good[..100]);
        std::fs::write(&path, good).unwrap();
        node.done(&["node", "start"]);
    }

    #[test]
    fn the_interface_answers_every_failure_as_an_object() {
        let node = Node::start("fused");
        let client = node.client();
        let long = "a".repeat(100_000);
        let answers: [(Method, &str, Value, ErrorCode); 5] = [
            (
                Method::Get,
                "/v1/volumes/%ff",
                Value::Null,
                ErrorCode::Invalid,
            ),
            (
                Method::Get,
                "/v1/volumes/a",
                Value::Null,
                ErrorCode::NotFound,
            ),
            (
                Method::Get,
                "/v1/nothing",
                Value::Null,
                ErrorCode::Unsupported,
            ),
            (
                Method::Get,
                "/v1/volumes?limit=x",
                Value::Null,
                ErrorCode::Invalid,
            ),
            (
                Method::Post,
                "/v1/volumes",
                json!({ "name": long }),
                ErrorCode::Invalid,
            ),
        ];
        for (method, path, body, code) in answers {
            let error = client.call::<_, Value>(method, path, &body).unwrap_err();
            assert_eq!(error.code, code, "{path}: {error:?}");
        }
    }

    #[test]
    fn an_import_in_progress_holds_its_name_and_is_left_alone() {
        let node = Node::start("fused");
        let client = node.client();
        let begin = json!({ "name": "i", "size": 1 << 20 });
        let bulk: Value = client.call(Method::Post, "/v1/images", &begin).unwrap();
        let socket = Path::new(bulk["socket"].as_str().unwrap());
        let channel = VolumeClient::connect(socket, None, VolumeOptions::default()).unwrap();
        for arguments in [
            &["volume", "rename", "i", "j"][..],
            &["volume", "resize", "i", "2M"],
            &["volume", "snapshot", "i", "j"],
            &["volume", "clone", "i", "j"],
            &["volume", "attach", "i", "--read-only"],
            &["volume", "remove", "i"],
            &["image", "export", "i", "-"],
        ] {
            let error = node.refused_as(arguments, 5, "in-use");
            assert!(!error["hint"].as_str().unwrap().is_empty(), "{error}");
        }
        let error = node.refused_as(&["volume", "create", "i", "--size", "1M"], 4, "exists");
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.contains("being imported"), "{error}");
        drop(channel);
        // Neither half of it is published, nor is it deleted, by whoever has begun another import of the name.
        let other = "0123456789abcdef0123456789abcdef";
        let path = |what: &str, lineage: &str| format!("/v1/images/i{what}?lineage={lineage}");
        for (method, what) in [(Method::Post, "/publish"), (Method::Delete, "")] {
            let answer = client.call::<_, Value>(method, &path(what, other), &());
            assert_eq!(answer.unwrap_err().code, ErrorCode::NotFound, "{what}");
        }
        let own = path("", bulk["lineage"].as_str().unwrap());
        let _done: Value = client.call(Method::Delete, &own, &()).unwrap();
        node.done(&["volume", "create", "i", "--size", "1M"]);
        let error = node.refused_as(&["volume", "create", "i", "--size", "1M"], 4, "exists");
        assert!(error["hint"].as_str().unwrap().contains("volume info i"));
    }

    #[test]
    fn a_process_that_cannot_start_says_why_at_the_command_line() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["node", "stop"]);
            let path = node.root().join("pool/pool.toml");
            let original = std::fs::read(&path).unwrap();
            std::fs::write(&path, "version = 9\n").unwrap();
            let error = node.refused_as(&["node", "start"], 8, "unsupported-format");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("pool.toml"), "{placement}: {error}");
            // The other processes wait for this one for ever: they are not waited for.
            let log = std::fs::read_to_string(node.root().join("run/archipelagod.log")).unwrap();
            assert!(!log.contains("did not answer"), "{placement}: {log}");
            std::fs::write(&path, original).unwrap();
            node.done(&["node", "start"]);
        }
    }

    /// The files of the pool whose names begin with `kind`.
    fn objects(node: &Node, kind: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![node.root().join("pool")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if name.starts_with(kind) {
                    found.push(path);
                }
            }
        }
        found
    }

    #[test]
    fn the_doctor_finds_damage_and_leaks_served_or_not() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let raw = write(&node, "raw", &[(0, &pattern(3, 100_000))], 8 << 20);
            node.done(&["image", "import", &raw, "image"]);
            node.done(&["volume", "clone", "image", "vm"]);
            let report = node.json(&["doctor"]);
            assert_eq!(
                (&report["online"], &report["clean"]),
                (&true.into(), &true.into())
            );
            assert_eq!(report["checked"]["entries"], 2, "{report}");
            node.refused_as(&["doctor", "--repair"], 5, "in-use");
            node.refused_as(&["doctor", "--pool", "other"], 3, "not-found");
            node.done(&["node", "stop"]);
            let report = node.json(&["doctor", "--pool", "default"]);
            assert_eq!(
                (&report["online"], &report["clean"]),
                (&false.into(), &true.into())
            );

            // Objects of a lineage that nothing names.
            let stray = node.root().join(format!("pool/77/{}", "7".repeat(32)));
            std::fs::create_dir_all(&stray).unwrap();
            std::fs::write(stray.join(format!("pack-{:016x}", 1)), [7; 4096]).unwrap();
            let report = node.json(&["doctor"]);
            assert_eq!(report["findings"][0]["kind"], "leaked", "{report}");
            assert!(stray.exists());
            let report = node.json(&["doctor", "--repair"]);
            assert_eq!(report["repaired"].as_array().unwrap().len(), 1, "{report}");
            assert!(!stray.exists());
            assert_eq!(node.json(&["doctor"])["findings"], Value::Array(Vec::new()));

            let pack = objects(&node, "pack-").pop().unwrap();
            let mut bytes = std::fs::read(&pack).unwrap();
            bytes[50] ^= 1;
            std::fs::write(&pack, &bytes).unwrap();
            let owner = pack
                .parent()
                .unwrap()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap();
            for served in [false, true] {
                let output = node.output(&["doctor"]);
                assert_eq!(output.status.code(), Some(7), "{output:?}");
                let said = String::from_utf8(output.stdout).unwrap();
                assert!(
                    said.contains(&format!("pack {} of {owner} is damaged", 1_u64 << 32)),
                    "{said}"
                );
                assert!(said.contains("needed by `"), "{said}");
                if !served {
                    node.done(&["node", "start"]);
                }
            }
            assert_eq!(std::fs::read(&pack).unwrap(), bytes);
        }
    }
}
