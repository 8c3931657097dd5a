//! Several pools in one node: added, shown, used and removed while it runs; and a node of which one is missing at the start.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use serde_json::Value;

    use crate::harness::{Node, PLACEMENTS, wait};

    fn add(node: &Node, name: &str) {
        let directory = node.path(name);
        node.done(&["pool", "add", name, "--dir", directory.to_str().unwrap()]);
    }

    /// What `volume list` says of each name: its pool.
    fn pools_of(node: &Node) -> Vec<(String, String)> {
        let list = node.json(&["volume", "list"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let volumes = list["volumes"].as_array().unwrap().iter();
        volumes
            .map(|view| (text(&view["name"]), text(&view["pool"])))
            .collect()
    }

    fn names_of_pools(node: &Node) -> Vec<String> {
        let list = node.json(&["pool", "list"]);
        let pools = list["pools"].as_array().unwrap().iter();
        pools
            .map(|pool| pool["name"].as_str().unwrap().to_owned())
            .collect()
    }

    fn pair(name: &str, pool: &str) -> (String, String) {
        (name.to_owned(), pool.to_owned())
    }

    /// What is wrong, but for the room on the disk of whoever runs this test.
    fn problems_but_room(node: &Node) -> Vec<Value> {
        let status = node.status();
        let problems = status["problems"].as_array().unwrap().iter();
        let is_room = |problem: &&Value| {
            let what = problem["what"].as_str().unwrap();
            what.contains("of its file system are used")
        };
        problems.filter(|one| !is_room(one)).cloned().collect()
    }

    #[test]
    fn pools_come_and_go_while_the_node_runs() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "old", "--size", "1M"]);
            add(&node, "fast");
            assert_eq!(names_of_pools(&node), ["default", "fast"]);
            // Without a name the pool `default` is meant.
            node.done(&["volume", "create", "a", "--size", "1M"]);
            node.done(&["volume", "create", "b", "--size", "1M", "--pool", "fast"]);
            // What is made from something lies beside it.
            node.done(&["volume", "snapshot", "b", "s"]);
            node.done(&["volume", "clone", "s", "c"]);
            let raw = node.path("raw");
            std::fs::write(&raw, vec![7; 4096]).unwrap();
            let import = [
                "image",
                "import",
                raw.to_str().unwrap(),
                "i",
                "--pool",
                "fast",
            ];
            node.done(&import);
            let expected = [
                pair("a", "default"),
                pair("b", "fast"),
                pair("c", "fast"),
                pair("i", "fast"),
                pair("old", "default"),
                pair("s", "fast"),
            ];
            assert_eq!(pools_of(&node), expected);
            assert!(node.done(&["volume", "list"]).contains("fast"));
            let info = node.json(&["pool", "info", "fast"]);
            assert_eq!(
                (&info["entries"], &info["unserved"]),
                (&4.into(), &Value::Null)
            );

            // Names are unique in the node.
            let other = ["volume", "create", "b", "--size", "1M"];
            let error = node.refused_as(&other, 4, "exists");
            assert!(
                error["message"].as_str().unwrap().contains("pool `fast`"),
                "{error}"
            );
            node.refused_as(&["volume", "rename", "a", "b"], 4, "exists");
            node.refused_as(&["volume", "clone", "s", "old"], 4, "exists");
            node.refused_as(&["volume", "info", "nobody"], 3, "not-found");
            node.refused_as(
                &["volume", "create", "x", "--size", "1M", "--pool", "slow"],
                3,
                "not-found",
            );
            let image = node.path("image");
            node.done(&["image", "export", "i", image.to_str().unwrap()]);
            assert_eq!(std::fs::read(&image).unwrap(), vec![7; 4096]);

            // All of it after a restart, attachments at their sockets.
            let socket = node.done(&["volume", "attach", "c"]);
            node.restart();
            assert_eq!(pools_of(&node), expected);
            assert!(Path::new(socket.trim()).exists());
            assert_eq!(node.done(&["volume", "attach", "c"]), socket);
            node.done(&["doctor", "--pool", "fast"]);

            // One that holds something stays.
            node.refused_as(&["pool", "remove", "fast"], 5, "in-use");
            node.refused_as(&["pool", "remove", "slow"], 3, "not-found");
            node.done(&["volume", "detach", "c"]);
            for name in ["b", "c", "i", "s"] {
                node.done(&["volume", "remove", name]);
            }
            node.done(&["pool", "remove", "fast"]);
            assert_eq!(names_of_pools(&node), ["default"]);
            node.refused_as(&["pool", "remove", "default"], 5, "in-use");
            node.restart();
            assert_eq!(
                pools_of(&node),
                [pair("a", "default"), pair("old", "default")]
            );
            // What was a pool may be one again.
            add(&node, "fast");
            node.done(&["node", "stop"]);
            node.done(&["doctor", "--pool", "fast"]);
        }
    }

    #[test]
    fn what_cannot_be_a_pool_is_refused_and_changes_nothing() {
        let node = Node::start("fused");
        let config = std::fs::read_to_string(node.path("archipelago.toml")).unwrap();
        let foreign = node.path("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("file"), "").unwrap();
        let inside = node.path("pool").join("below");
        let long = "x".repeat(200);
        let fresh = node.path("fresh");
        for (name, directory, code, kind) in [
            ("default", &fresh, 4, "exists"),
            ("fast", &foreign, 4, "exists"),
            ("fast", &inside, 2, "invalid"),
            (long.as_str(), &fresh, 2, "invalid"),
        ] {
            let directory = directory.to_str().unwrap();
            node.refused_as(&["pool", "add", name, "--dir", directory], code, kind);
        }
        assert_eq!(
            std::fs::read_to_string(node.path("archipelago.toml")).unwrap(),
            config
        );
        assert_eq!(names_of_pools(&node), ["default"]);
    }

    #[test]
    fn a_pool_that_is_missing_at_the_start_costs_the_other_nothing() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            add(&node, "fast");
            node.done(&["volume", "create", "a", "--size", "1M"]);
            node.done(&["volume", "create", "b", "--size", "1M", "--pool", "fast"]);
            let socket = node.done(&["volume", "attach", "b"]);
            node.done(&["node", "stop"]);
            let (there, away) = (node.path("fast"), node.path("away"));
            std::fs::rename(&there, &away).unwrap();

            let started = node.output(&["node", "start"]);
            let said = String::from_utf8_lossy(&started.stderr).into_owned();
            assert!(started.status.success(), "{said}");
            assert!(said.contains("pool `fast` is not served"), "{said}");
            assert!(said.contains(there.to_str().unwrap()), "{said}");
            let status = node.status();
            let problems = status["problems"].as_array().unwrap();
            assert!(problems.iter().any(|one| one["pool"] == "fast"), "{status}");
            node.done(&["volume", "attach", "a"]);
            node.done(&["volume", "snapshot", "a", "s"]);
            let listed = node.output(&["volume", "list"]);
            let said = String::from_utf8_lossy(&listed.stderr).into_owned();
            assert!(said.contains("`fast` holds is not listed"), "{said}");
            // It may be there.
            node.refused_as(&["volume", "info", "b"], 1, "unavailable");
            node.refused_as(&["pool", "remove", "fast"], 1, "unavailable");
            let create = ["volume", "create", "c", "--size", "1M", "--pool", "fast"];
            node.refused_as(&create, 1, "unavailable");
            // The name is not known to be taken; afterwards it is in two pools, until one is renamed.
            node.done(&["volume", "create", "b", "--size", "1M"]);

            std::fs::rename(&away, &there).unwrap();
            wait("the pool is served", || {
                node.json(&["pool", "info", "fast"])["unserved"].is_null()
            });
            assert_eq!(problems_but_room(&node), Vec::<Value>::new());
            let error = node.refused_as(&["volume", "info", "b"], 4, "exists");
            assert!(
                error["hint"].as_str().unwrap().contains("--pool"),
                "{error}"
            );
            node.done(&["volume", "rename", "b", "b2", "--pool", "default"]);
            assert_eq!(node.json(&["volume", "info", "b"])["pool"], "fast");
            assert_eq!(node.done(&["volume", "attach", "b"]), socket);
        }
    }

    #[test]
    fn a_pool_that_never_comes_back_is_taken_out_and_holds_the_same_when_it_is_added_again() {
        let node = Node::start("fused");
        add(&node, "fast");
        node.done(&["volume", "create", "b", "--size", "1M", "--pool", "fast"]);
        let socket = node.done(&["volume", "attach", "b"]);
        // For pools that are not served only.
        node.refused_as(&["pool", "remove", "fast", "--unserved"], 2, "invalid");
        node.done(&["node", "stop"]);
        let (there, away) = (node.path("fast"), node.path("away"));
        std::fs::rename(&there, &away).unwrap();
        node.done(&["node", "start"]);
        let error = node.refused_as(&["pool", "remove", "fast"], 1, "unavailable");
        assert!(
            error["hint"].as_str().unwrap().contains("--unserved"),
            "{error}"
        );
        node.done(&["pool", "remove", "fast", "--unserved"]);
        assert_eq!(names_of_pools(&node), ["default"]);
        assert_eq!(problems_but_room(&node), Vec::<Value>::new());
        node.refused_as(&["volume", "info", "b"], 3, "not-found");
        node.restart();
        std::fs::rename(&away, &there).unwrap();
        add(&node, "fast");
        assert_eq!(pools_of(&node), [pair("b", "fast")]);
        assert_eq!(node.done(&["volume", "attach", "b"]), socket);
        wait("it is served", || Path::new(socket.trim()).exists());
    }

    #[test]
    fn a_pool_and_its_copy_keep_their_attachments_apart() {
        let node = Node::start("fused");
        node.done(&["volume", "create", "v", "--size", "1M"]);
        let socket = node.done(&["volume", "attach", "v"]);
        node.done(&["node", "stop"]);
        let copied = Command::new("cp")
            .arg("-a")
            .args([node.path("pool"), node.path("copy")])
            .status();
        assert!(copied.unwrap().success());
        let config = node.path("archipelago.toml");
        let section = format!(
            "\n[pool.copy]\nkind = \"file\"\ndirectory = \"{}\"\n",
            node.path("copy").display()
        );
        let text = std::fs::read_to_string(&config).unwrap() + &section;
        std::fs::write(&config, text).unwrap();
        node.done(&["node", "start"]);
        // As the hint for a name in two pools says. What is attached is the original.
        node.done(&["volume", "rename", "v", "w", "--pool", "copy"]);
        assert_eq!(pools_of(&node), [pair("v", "default"), pair("w", "copy")]);
        node.output(&["volume", "detach", "w"]);
        assert_eq!(
            node.json(&["volume", "info", "w"])["attachments"],
            Value::Null
        );
        for _ in 0..2 {
            assert_eq!(node.done(&["volume", "attach", "v"]), socket);
            assert_eq!(node.json(&["volume", "info", "v"])["pool"], "default");
            node.restart();
            assert!(Path::new(socket.trim()).exists(), "served after a restart");
        }
    }

    #[test]
    fn a_node_without_any_pool_that_can_be_served_does_not_start() {
        let node = Node::start("fused");
        add(&node, "fast");
        node.done(&["node", "stop"]);
        for name in ["pool", "fast"] {
            std::fs::rename(node.path(name), node.path("away").with_extension(name)).unwrap();
        }
        let error = node.refused(&["node", "start"], 3);
        assert!(
            error.contains(node.path("pool").to_str().unwrap()),
            "{error}"
        );
    }

    #[test]
    fn a_node_with_one_pool_of_any_name_keeps_its_places() {
        let node = Node::init("fused");
        let config = node.path("archipelago.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("[pool.default]", "[pool.main]")).unwrap();
        node.done(&["node", "start"]);
        node.done(&["volume", "create", "a", "--size", "1M"]);
        let socket = node.done(&["volume", "attach", "a"]);
        assert!(node.path("run/control-endpoint.sock").exists());
        add(&node, "default");
        node.done(&["node", "stop"]);
        // As an older build has noted it.
        let noted = node.path("state/attachments.json");
        let text = std::fs::read_to_string(&noted).unwrap();
        let mut content: Value = serde_json::from_str(&text).unwrap();
        let one = content["attachments"][0].as_object_mut().unwrap();
        assert_eq!(one.remove("pool").unwrap(), "main");
        std::fs::write(&noted, content.to_string()).unwrap();
        node.done(&["node", "start"]);
        assert!(node.path("run/control-endpoint.sock").exists());
        assert!(
            node.path("run/pools/default/control-endpoint.sock")
                .exists()
        );
        assert_eq!(node.done(&["volume", "attach", "a"]), socket);
        assert_eq!(node.json(&["volume", "info", "a"])["pool"], "main");
    }
}
