//! What packages install beside the command: manual pages, as the tools that show them read them, and completions, in real shells.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::{Command, Stdio};

    use archipelago_cli::options::Options;
    use clap::CommandFactory;

    use crate::harness::{run, skip};

    const PROGRAM: &str = env!("CARGO_BIN_EXE_archipelago");

    fn is_installed(name: &str) -> bool {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("command -v {name}")]);
        command.stdout(Stdio::null()).status().unwrap().success()
    }

    /// Names of the pages of `command` and of what is below it.
    fn pages(command: &clap::Command, title: &str, into: &mut BTreeSet<String>) {
        into.insert(format!("{title}.1"));
        for below in command.get_subcommands() {
            if !below.is_hide_set() && below.get_name() != "help" {
                pages(below, &format!("{title}-{}", below.get_name()), into);
            }
        }
    }

    #[test]
    fn every_command_has_a_page_that_formatters_take() {
        let dir = tempfile::tempdir().unwrap();
        let man = dir.path().join("share/man1");
        let output = run(Command::new(PROGRAM).arg("man").arg(&man));
        assert!(output.status.success(), "{output:?}");
        let mut expected = BTreeSet::new();
        pages(&Options::command(), "archipelago", &mut expected);
        assert!(expected.contains("archipelago-volume-create.1"));
        let found = std::fs::read_dir(&man).unwrap();
        let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(found.collect::<BTreeSet<String>>(), expected);
        let page = std::fs::read_to_string(man.join("archipelago-image-import.1")).unwrap();
        for words in ["checksum", "object", "http"] {
            assert!(page.contains(words), "{words}: {page}");
        }
        let formatters: [&[&str]; 2] = [
            &["groff", "-man", "-Tutf8", "-ww", "-z"],
            &["mandoc", "-T", "lint", "-W", "error"],
        ];
        for formatter in formatters {
            if !is_installed(formatter[0]) {
                skip(&format!("{} is not installed", formatter[0]));
                continue;
            }
            for page in &expected {
                let mut command = Command::new(formatter[0]);
                let output = run(command.args(&formatter[1..]).arg(man.join(page)));
                let said = String::from_utf8_lossy(&output.stderr).into_owned()
                    + &String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{formatter:?} {page}: {said}");
                assert!(said.is_empty(), "{formatter:?} {page}: {said}");
            }
        }
    }

    /// The script of `shell`, in a file.
    fn script(shell: &str) -> tempfile::NamedTempFile {
        let output = run(Command::new(PROGRAM).args(["completions", shell]));
        assert!(output.status.success(), "{output:?}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), output.stdout).unwrap();
        file
    }

    #[test]
    fn bash_completes_commands_options_and_values() {
        let script = script("bash");
        let complete = |words: &[&str]| {
            let last = words.len() - 1;
            let program = format!(
                "source {}; COMP_WORDS=({}); COMP_CWORD={last}; \
                 _archipelago archipelago '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                script.path().display(),
                words
                    .iter()
                    .map(|word| format!("'{word}' "))
                    .collect::<String>(),
                words[last],
                words[last - 1],
            );
            let mut bash = Command::new("bash");
            let output = run(bash.args(["--norc", "--noprofile", "-c", &program]));
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(complete(&["archipelago", "vol"]), "volume\n");
        assert_eq!(complete(&["archipelago", "volume", "sna"]), "snapshot\n");
        assert_eq!(
            complete(&["archipelago", "image", "import", "--che"]),
            "--checksum\n"
        );
        assert_eq!(complete(&["archipelago", "completions", "z"]), "zsh\n");
    }

    #[test]
    fn zsh_and_fish_take_their_scripts() {
        for (shell, check) in [("zsh", "-n"), ("fish", "--no-execute")] {
            let script = script(shell);
            if !is_installed(shell) {
                println!("skipped: {shell} is not installed");
                continue;
            }
            let output = run(Command::new(shell).arg(check).arg(script.path()));
            assert!(output.status.success(), "{output:?}");
        }
        if is_installed("fish") {
            let script = script("fish");
            let program = format!(
                "source {}; complete --do-complete 'archipelago volume sna'",
                script.path().display()
            );
            let output = run(Command::new("fish").args(["--no-config", "-c", &program]));
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.starts_with("snapshot"), "{said}");
        }
    }
}
