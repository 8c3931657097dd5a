//! Labels at the command line and over the interface: set, shown, filtered, removed, and refused in words.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use archipelago_api::client::Method;
    use serde_json::{Value, json};

    use crate::harness::{Node, PLACEMENTS, may_mount};

    fn labels(node: &Node, name: &str) -> Value {
        node.json(&["volume", "info", name])["labels"].clone()
    }

    fn listed(node: &Node, label: &str) -> Vec<String> {
        let list = node.json(&["volume", "list", "--label", label]);
        let names = list["volumes"].as_array().unwrap().iter();
        names
            .map(|view| view["name"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn labels_are_set_on_anything_shown_filtered_and_outlive_the_node() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let source = node.path("source");
            std::fs::write(&source, [7; 4096]).unwrap();
            let import = ["image", "import", source.to_str().unwrap(), "i"];
            node.done(&[&import[..], &["--label", "os=debian"]].concat());
            node.done(&["volume", "clone", "i", "web", "--label", "ganeti.disk=0"]);
            node.done(&["volume", "attach", "web"]);
            // While it is attached, several at once, one for another, an empty one, and one with everything that is legal.
            node.done(&[
                "volume",
                "set",
                "web",
                "ganeti.instance=web.example.org",
                "note=\"ü\", 100% = x",
                "empty=",
            ]);
            node.done(&["volume", "snapshot", "web", "s1"]);
            node.done(&["volume", "snapshot", "web", "s2", "--label", "kept=7 d"]);
            node.done(&["volume", "clone", "s2", "c"]);
            node.done(&["volume", "set", "s1", "kept=yes"]);
            node.done(&[
                "volume",
                "set",
                "web",
                "--unset",
                "empty",
                "ganeti.disk=1",
                "--unset",
                "never",
            ]);
            let create = ["volume", "create", "db", "--size", "1G"];
            node.done(&[&create[..], &["--label", "a=1", "--label", "b=2"]].concat());
            node.done(&["volume", "rename", "db", "db2"]);
            let check = || {
                for (name, expected) in [
                    (
                        "web",
                        json!({"ganeti.disk": "1", "ganeti.instance": "web.example.org", "note": "\"ü\", 100% = x"}),
                    ),
                    ("i", json!({"os": "debian"})),
                    ("s1", json!({"kept": "yes"})),
                    ("s2", json!({"kept": "7 d"})),
                    ("c", json!({})),
                    ("db2", json!({"a": "1", "b": "2"})),
                ] {
                    assert_eq!(labels(&node, name), expected, "{name}");
                }
                assert_eq!(listed(&node, "kept"), ["s1", "s2"]);
                assert_eq!(listed(&node, "kept=7 d"), ["s2"]);
                assert_eq!(listed(&node, "note=\"ü\", 100% = x"), ["web"]);
                assert_eq!(listed(&node, "kept=7"), [] as [&str; 0]);
                assert_eq!(listed(&node, "empty"), [] as [&str; 0]);
            };
            check();
            let text = node.done(&["volume", "info", "web"]);
            let row = "label        ganeti.instance=web.example.org\n";
            assert!(text.contains(row), "{text}");
            let text = node.done(&["volume", "list"]);
            let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line("NAME").ends_with("  LABELS"), "{text}");
            assert!(
                line("db2").ends_with("  a=1,b=2") && line("c ").ends_with("  -"),
                "{text}"
            );
            node.restart();
            check();
            node.assert_clean();
        }
    }

    #[test]
    fn a_list_without_labels_has_no_column_for_them() {
        let node = Node::start("fused");
        node.done(&["volume", "create", "v", "--size", "1G"]);
        let text = node.done(&["volume", "list"]);
        assert!(text.lines().next().unwrap().ends_with("CREATED"), "{text}");
    }

    #[test]
    fn what_cannot_be_a_label_is_refused_in_words_and_changes_nothing() {
        let node = Node::start("fused");
        node.done(&["volume", "create", "v", "--size", "1G", "--label", "a=1"]);
        let long = format!("a={}", "x".repeat(256));
        for (label, why) in [
            ("a", "KEY=VALUE"),
            ("=x", "1 to 63 characters"),
            ("A=x", "a-z 0-9 . _ -"),
            (".a=x", "begin with a letter or a digit"),
            ("a=x\ny", "control characters"),
            (long.as_str(), "up to 255 bytes"),
        ] {
            for arguments in [
                &["volume", "set", "v", label][..],
                &["volume", "create", "n", "--size", "1G", "--label", label],
                &["volume", "snapshot", "v", "n", "--label", label],
                &["volume", "clone", "v", "n", "--label", label],
                &["image", "import", "/dev/null", "n", "--label", label],
            ] {
                let text = node.refused(arguments, 2);
                assert!(text.contains(why), "{arguments:?}: {text}");
            }
        }
        for arguments in [
            &["volume", "set", "v", "b=1", "b=2"][..],
            &["volume", "set", "v", "b=1", "--unset", "b"],
            &[
                "volume", "create", "n", "--size", "1G", "--label", "b=1", "--label", "b=1",
            ],
        ] {
            let text = node.refused(arguments, 2);
            assert!(text.contains("`b` is given twice"), "{arguments:?}: {text}");
        }
        let many: Vec<String> = (0..32).map(|number| format!("k{number}=x")).collect();
        let many: Vec<&str> = ["volume", "set", "v"]
            .into_iter()
            .chain(many.iter().map(String::as_str))
            .collect();
        let text = node.refused(&many, 2);
        assert!(text.contains("33 labels are more than the 32"), "{text}");
        let text = node.refused(&["volume", "set", "v"], 2);
        let all = ["KEY=VALUE", "--unset", "--on-full"];
        assert!(all.iter().all(|one| text.contains(one)), "{text}");
        node.refused(&["volume", "set", "x", "a=2"], 3);
        assert_eq!(labels(&node, "v"), json!({"a": "1"}));
        node.refused(&["volume", "info", "n"], 3);
        // All that is given, or nothing: a snapshot has no policy.
        node.done(&["volume", "snapshot", "v", "s"]);
        node.refused(&["volume", "set", "s", "a=2", "--on-full", "report"], 2);
        assert_eq!(labels(&node, "s"), json!({}));
    }

    #[test]
    fn the_interface_sets_removes_and_filters_by_pages() {
        let node = Node::start("fused");
        let client = node.client();
        for number in 0..7 {
            let role = if number == 3 { "db" } else { "web" };
            let body =
                json!({"name": format!("v{number}"), "size": 4096, "labels": {"role": role}});
            client
                .call::<_, Value>(Method::Post, "/v1/volumes", &body)
                .unwrap();
        }
        let set = |body: &Value| client.call::<_, Value>(Method::Post, "/v1/volumes/v5/set", body);
        let view = set(&json!({"labels": {"role": null, "x": "y"}})).unwrap();
        assert_eq!(view["labels"], json!({"x": "y"}));
        for body in [
            json!({"labels": {}}),
            json!({"labels": {"A": "x"}}),
            json!({"labels": {"a": 1}}),
            json!({"labels": ["a=1"]}),
            json!({"label": {"a": "1"}}),
        ] {
            assert_eq!(set(&body).unwrap_err().code.exit_code(), 2, "{body}");
        }
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/volumes?label=role%3Dweb&limit=2{after}");
            let page: Value = client.get(&path).unwrap();
            let volumes = page["volumes"].as_array().unwrap();
            assert!(volumes.len() <= 2);
            found.extend(volumes.iter().map(|view| view["name"].clone()));
            match page["next"].as_str() {
                Some(last) => after = format!("&after={last}"),
                None => break,
            }
        }
        assert_eq!(json!(found), json!(["v0", "v1", "v2", "v4", "v6"]));
        let refused = client.get::<Value>("/v1/volumes?label=%3D").unwrap_err();
        assert_eq!(refused.code.exit_code(), 2);
    }

    #[test]
    fn in_a_full_pool_a_label_is_set_or_refused_for_want_of_space() {
        if !may_mount() {
            return;
        }
        let mut node = Node::new();
        let mount = node.mount_tmpfs("mount", "64m");
        node.done(&["init", "--pool-dir", mount.join("pool").to_str().unwrap()]);
        node.done(&["node", "start"]);
        node.done(&["volume", "create", "v", "--size", "1G", "--label", "n=x"]);
        let found = nix::sys::statvfs::statvfs(&mount).unwrap();
        let free = usize::try_from(found.blocks_available() * found.fragment_size()).unwrap();
        std::fs::write(mount.join("ballast"), vec![1; free]).unwrap();
        let long = "x".repeat(200);
        let mut expected = json!({"n": "x"});
        // More than the log of the catalogue has room for: checkpoints are made of the reserve, too.
        for number in 0..400 {
            let output = node.output(&[
                "volume",
                "set",
                "v",
                &format!("n={number}"),
                &format!("long={long}"),
            ]);
            match output.status.code() {
                Some(0) => expected = json!({"n": number.to_string(), "long": long}),
                Some(6) => {}
                other => panic!("{other:?}: {output:?}"),
            }
            if number % 50 == 0 {
                assert_eq!(labels(&node, "v"), expected);
            }
        }
        node.restart();
        assert_eq!(labels(&node, "v"), expected);
    }
}
