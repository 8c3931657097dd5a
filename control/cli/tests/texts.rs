//! Help and error texts, as people read them. `cargo insta review` after a change that is meant.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use crate::harness::{COMMAND_DEADLINE, ended, run};

    fn archipelago(root: Option<&Path>, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago"));
        command
            .args(arguments)
            .env_remove("ARCHIPELAGO_ROOT")
            .env("COLUMNS", "100");
        if let Some(root) = root {
            command.env("ARCHIPELAGO_ROOT", root);
        }
        run(&mut command)
    }

    /// Exit code, standard output and standard error, with the root directory made anonymous.
    fn told(root: &Path, arguments: &[&str]) -> String {
        let output = archipelago(Some(root), arguments);
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(&root.display().to_string(), "ROOT")
        };
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        format!(
            "$ archipelago {}\nexit {}\n{out}{err}",
            arguments.join(" "),
            output.status.code().unwrap_or(-1)
        )
    }

    #[test]
    fn help_texts() {
        let mut text = String::new();
        let commands = [
            "",
            "init",
            "node",
            "pool",
            "volume",
            "volume create",
            "volume snapshot",
            "volume clone",
            "volume list",
            "volume resize",
            "volume set",
            "volume attach",
            "image",
            "image import",
            "image export",
            "mount",
            "umount",
            "nbd serve",
            "ganeti",
            "ganeti install",
            "doctor",
            "completions",
        ];
        for command in commands {
            let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
            let output = archipelago(None, &arguments);
            assert!(output.status.success(), "{command}");
            text.push_str(&format!(
                "$ archipelago {}\n{}\n",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout)
            ));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn errors_say_what_why_and_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut cases: Vec<String> = Vec::new();
        let mut case = |arguments: &[&str]| cases.push(told(root, arguments));
        case(&["node", "start"]);
        case(&["node", "status"]);
        case(&["--json", "node", "status"]);
        case(&["init", "--placement", "somewhere"]);
        case(&["init"]);
        case(&["init"]);
        case(&["--json", "init"]);
        case(&["volume", "create", ".hidden", "--size", "1G"]);
        case(&["volume", "create", "a", "--size", "1000"]);
        case(&["volume", "create", "a", "--size", "1025T"]);
        case(&["volume", "create", "a", "--size", "many"]);
        case(&[
            "volume",
            "create",
            "a",
            "--size",
            "1G",
            "--object-size",
            "5K",
        ]);
        case(&["volume", "attach", "a", "--queues", "0"]);
        case(&["--json", "volume", "create", "a/b", "--size", "1G"]);
        case(&["--json"]);
        case(&["--json", "volume", "create", "a"]);
        case(&["--json", "volume", "creat", "a"]);
        case(&["--root", "", "volume", "info", "a"]);
        case(&["volume", "info", "a"]);
        case(&["image", "import", "/nonexistent", "a"]);
        insta::assert_snapshot!(cases.join("\n"));
    }

    #[test]
    fn a_bad_configuration_is_named_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(archipelago(Some(root), &["init"]).status.success());
        let path = root.join("archipelago.toml");
        let good = std::fs::read_to_string(&path).unwrap();
        let mut cases = Vec::new();
        for (from, to) in [
            ("poll_us = 50", "poll_us = 2000"),
            ("poll_us", "pole_us"),
            ("\"fused\"", "\"fast\""),
            ("[data]", "[data"),
            ("[data]", "[dat]"),
        ] {
            std::fs::write(&path, good.replace(from, to)).unwrap();
            cases.push(told(root, &["node", "start"]));
        }
        insta::assert_snapshot!(cases.join("\n"));
        assert!(!root.join("run/api.sock").exists());
    }

    #[test]
    fn help_is_a_command_too() {
        for arguments in [&["help"][..], &["help", "volume", "create"]] {
            let asked = archipelago(None, arguments);
            let mut option = arguments[1..].to_vec();
            option.push("--help");
            assert!(asked.status.success(), "{arguments:?}");
            assert_eq!(asked.stdout, archipelago(None, &option).stdout);
        }
    }

    #[test]
    fn directories_that_are_in_the_way_are_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("node");
        std::fs::write(&root, "").unwrap();
        insta::assert_snapshot!(told(&root, &["init"]));
        std::fs::remove_file(&root).unwrap();
        assert!(archipelago(Some(&root), &["init"]).status.success());
        // As after a reboot: /run is empty. The daemon does not get far, but what it needs has been made.
        std::fs::remove_dir_all(root.join("run")).unwrap();
        std::fs::write(root.join("state/attachments.json"), "{").unwrap();
        let _damaged = archipelago(Some(&root), &["node", "start"]);
        let mode = root.join("run").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        use std::io::Read;
        let mut child = Command::new(env!("CARGO_BIN_EXE_archipelago"))
            .arg("--help")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut byte).unwrap();
        drop(stdout);
        let output = ended(
            child,
            "the command whose reader has gone away",
            COMMAND_DEADLINE,
        );
        assert!(output.status.success(), "{output:?}");
    }
}
