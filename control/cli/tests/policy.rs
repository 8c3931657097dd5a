//! `--on-full` at the command line: what is accepted, what is shown, what is refused and with which words and exit codes.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use archipelago_api::client::Method;
    use serde_json::{Value, json};

    use crate::harness::{Node, PLACEMENTS};

    fn policy(node: &Node, name: &str) -> String {
        let info = node.json(&["volume", "info", name]);
        info["on_full"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_policy_is_given_shown_inherited_and_outlives_the_node() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let make = |name: &str, policy: &[&str]| {
                let create = ["volume", "create", name, "--size", "1G"];
                node.done(&[&create, policy].concat());
            };
            make("plain", &[]);
            make("bounded", &["--on-full", "wait:60"]);
            make("reporting", &["--on-full", "report"]);
            node.done(&["volume", "snapshot", "reporting", "s"]);
            node.done(&["volume", "clone", "s", "like-it"]);
            node.done(&["volume", "clone", "s", "other", "--on-full", "wait"]);
            // Attached or not, the same again, and after the snapshot, which keeps what it has.
            node.done(&["volume", "attach", "reporting"]);
            for _ in 0..2 {
                node.done(&["volume", "set", "reporting", "--on-full", "wait:1"]);
                node.done(&["volume", "set", "plain", "--on-full", "wait:4294967295"]);
            }
            node.done(&["volume", "attach", "reporting"]);
            let check = || {
                for (name, expected) in [
                    ("plain", "wait:4294967295"),
                    ("bounded", "wait:60"),
                    ("reporting", "wait:1"),
                    ("s", "report"),
                    ("like-it", "report"),
                    ("other", "wait"),
                ] {
                    assert_eq!(policy(&node, name), expected, "{name}");
                }
                let text = node.done(&["volume", "info", "bounded"]);
                let row = text.lines().find(|line| line.starts_with("on full"));
                assert!(row.is_some_and(|row| row.ends_with(" wait:60")), "{text}");
                let list = node.json(&["volume", "list"]);
                let views = list["volumes"].as_array().unwrap();
                let of = |view: &&Value| view["name"] == "s";
                assert_eq!(views.iter().find(of).unwrap()["on_full"], "report");
            };
            check();
            node.restart();
            check();
            node.assert_clean();
        }
    }

    #[test]
    fn what_cannot_be_set_is_refused_in_words() {
        let node = Node::start("fused");
        node.done(&["volume", "create", "v", "--size", "1G"]);
        node.done(&["volume", "snapshot", "v", "s"]);
        let source = node.path("source");
        std::fs::write(&source, [7; 4096]).unwrap();
        node.done(&["image", "import", source.to_str().unwrap(), "i"]);
        for name in ["s", "i"] {
            let text = node.refused(&["volume", "set", name, "--on-full", "report"], 2);
            let expected = format!(
                "`{name}` is frozen: only volumes have a policy for a full pool of their own"
            );
            assert!(text.contains(&expected), "{text}");
            let hint = format!("volume clone {name} NAME --on-full report`");
            assert!(text.contains(&hint), "{text}");
        }
        let text = node.refused(&["volume", "set", "x", "--on-full", "report"], 3);
        assert!(text.contains("`x`"), "{text}");
        let forms = "wait, wait:SECONDS (1 to 4294967295) or report";
        for value in ["0", "wait:0", "wait:", "wait:1.5", "wait:1m", "never", ""] {
            let given = format!("--on-full={value}");
            for arguments in [
                &["volume", "set", "v"][..],
                &["volume", "create", "n", "--size", "1G"],
                &["volume", "clone", "s", "n"],
            ] {
                let text = node.refused(&[arguments, &[&given]].concat(), 2);
                assert!(text.contains(forms), "{value}: {text}");
            }
        }
        let text = node.refused(&["volume", "set", "v"], 2);
        assert!(text.contains("--on-full"), "{text}");
        assert_eq!(policy(&node, "v"), "wait");
        node.refused(&["volume", "info", "n"], 3);
        // The interface says the same.
        let client = node.client();
        for body in [
            json!({"on_full": "wait:0"}),
            json!({"on_full": 5}),
            json!({}),
            json!({"size": 512}),
        ] {
            let answer = client.call::<Value, Value>(Method::Post, "/v1/volumes/v/set", &body);
            let error = answer.unwrap_err();
            assert_eq!(error.code.exit_code(), 2, "{body}: {error}");
        }
        let body = json!({"on_full": "wait:5"});
        let view: Value = client
            .call(Method::Post, "/v1/volumes/v/set", &body)
            .unwrap();
        assert_eq!(view["on_full"], "wait:5");
    }
}
