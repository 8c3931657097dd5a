//! What a program that reads images can reach.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{COMMAND_DEADLINE, Node, ended, has_programs};
use crate::images::write;

#[test]
fn a_program_that_reads_images_reaches_nothing_else() {
    let node = Node::start("fused");
    let secret = write(&node, "secret", b"secret");
    let allowed = write(&node, "allowed", b"allowed");
    let programs = std::env::current_exe().unwrap();
    let daemon = programs.ancestors().nth(2).unwrap().join("archipelagod");
    let confined = |script: &str, files: &[&Path]| {
        let mut command = Command::new(&daemon);
        command.args(["tool", "--parent", &std::process::id().to_string()]);
        // The standard input of the program is the file.
        command.args([
            "--read",
            "0",
            "--file-size",
            "65536",
            "--",
            "/bin/sh",
            "-c",
            script,
        ]);
        for file in files {
            command.stdin(File::open(file).unwrap());
        }
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        ended(child, script, COMMAND_DEADLINE)
    };
    let read = confined("cat /proc/self/fd/0", &[&allowed]);
    assert_eq!(read.stdout, b"allowed", "{read:?}");
    let landlock = std::fs::read_to_string("/sys/kernel/security/lsm");
    if landlock.is_ok_and(|list| list.contains("landlock")) {
        for script in [
            format!("cat {}", secret.display()),
            "cat /etc/passwd".to_owned(),
            format!("echo x >> {}", allowed.display()),
        ] {
            let output = confined(&script, &[&allowed]);
            assert!(!output.status.success(), "{script}: {output:?}");
        }
    } else {
        // No failure of CI: kernels without it are served too, and the other walls stand.
        println!("skipped: this kernel has no Landlock");
    }
    let output = confined("kill -0 1", &[&allowed]);
    assert!(!output.status.success(), "{output:?}");
    // Neither what else is open here nor what the environment says is its business.
    let open = File::open(&secret).unwrap();
    let open = nix::fcntl::fcntl(&open, nix::fcntl::FcntlArg::F_DUPFD(100)).unwrap();
    let script = format!("test -e /proc/self/fd/{open} && echo inherited; env");
    let output = confined(&script, &[&allowed]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(
        words.contains("PATH=") && !words.contains("CARGO") && !words.contains("inherited"),
        "{words}"
    );
    // Sockets of this host's services, and new namespaces, if there is a program that could try.
    if has_programs(&["perl"]) {
        for script in [
            "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) or exit 1'",
            "perl -e 'syscall(56, 0x10000011, 0, 0, 0, 0) >= 0 or exit 1'",
        ] {
            let output = confined(script, &[&allowed]);
            assert_eq!(output.status.code(), Some(1), "{script}: {output:?}");
        }
    }
}
