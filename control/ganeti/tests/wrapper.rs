//! The wrapper: what it runs, and that a real QEMU takes what it is given.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use crate::harness::{Host, VOLUME, run, skip, text};

    const QEMU: &str = "/usr/bin/qemu-system-x86_64";
    const ID: &str = "disk-932df160-7a22-4067";
    const USERSPACE: [(&str, &str); 1] = [("EXTP_ACCESS", "userspace")];

    /// The drive of the disk `VOLUME` as Ganeti 3.0 and 3.1 write it.
    fn drives() -> [[String; 2]; 2] {
        [
            [
                "-drive".to_owned(),
                format!(
                    "file=rbd:vhost_user/{VOLUME},format=raw,if=none,aio=threads,cache=none,id={ID},auto-read-only=off"
                ),
            ],
            [
                "-blockdev".to_owned(),
                format!(
                    "driver=raw,node-name={ID},discard=ignore,cache.direct=on,cache.no-flush=off,file.driver=rbd,\
                     file.pool=vhost_user,file.image={VOLUME},auto-read-only=off"
                ),
            ],
        ]
    }

    fn wrapper(host: &Host) -> Command {
        let mut command = Command::new(host.provider().join("archipelago-kvm"));
        // The settings beside it alone decide.
        command
            .env("ARCHIPELAGO_ROOT", host.path("elsewhere"))
            .env("ARCHIPELAGO_KVM", "/bin/false");
        command
    }

    /// A program that prints its arguments.
    fn echo(host: &Host) -> std::path::PathBuf {
        let path = host.path("echo");
        fs::write(&path, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn without_a_disk_of_ours_it_is_qemu_also_while_no_node_runs() {
        let host = Host::stopped();
        let mut command = wrapper(&host);
        command.args(["-name", "n1", "-drive", "file=/a", "-device", "?"]);
        host.install("--qemu", &echo(&host));
        let output = run(&mut command);
        assert_eq!(
            text(&output.stdout),
            "-name\nn1\n-drive\nfile=/a\n-device\n?\n"
        );
        host.install("--qemu", &host.path("nothing"));
        let output = run(wrapper(&host).arg("--help"));
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("--qemu FILE"), "{output:?}");
        host.install("--qemu", &host.provider().join("archipelago-kvm"));
        let output = run(&mut wrapper(&host));
        assert!(
            text(&output.stderr).contains("is this wrapper"),
            "{output:?}"
        );
        // A link in a directory without settings: there the environment decides.
        let link = host.path("archipelago-kvm");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_archipelago-ganeti"), &link).unwrap();
        let mut linked = Command::new(link);
        let output = run(linked.arg("x").env("ARCHIPELAGO_KVM", echo(&host)));
        assert_eq!(text(&output.stdout), "x\n", "{output:?}");
    }

    #[test]
    fn a_disk_that_is_not_attached_is_said_and_nothing_starts() {
        let host = Host::start();
        let device = format!("virtio-blk-pci,id={ID},bus=pci.0,addr=0xd,drive={ID}");
        let [drive, _] = drives();
        host.install("--qemu", &echo(&host));
        let run_it = || {
            let mut command = wrapper(&host);
            command.args(["-m", "64", "-device", &device]).args(&drive);
            run(&mut command)
        };
        let output = run_it();
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(
            said.contains(VOLUME) && said.contains("there is no volume"),
            "{said}"
        );
        host.done("create", &[USERSPACE[0], ("VOL_SIZE", "4")]);
        host.done("detach", &USERSPACE);
        let output = run_it();
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(1), String::new())
        );
        assert!(
            said.contains("is not attached over vhost-user") && said.contains("activate-disks"),
            "{said}"
        );
        host.done("attach", &USERSPACE);
        let socket = host.view(VOLUME).unwrap().attachments[0]
            .endpoint
            .path()
            .to_owned();
        let output = run_it();
        let path = format!(
            "socket,id=archipelago-{ID},path={},reconnect=1",
            socket.display()
        );
        assert!(
            text(&output.stdout).lines().any(|line| line == path),
            "{output:?}"
        );
    }

    /// Two disks, of two processors: more than an endpoint has queues.
    #[test]
    fn qemu_has_the_disks_at_their_places_and_shared_memory() {
        if !Path::new(QEMU).exists() {
            return skip("there is no QEMU");
        }
        let host = Host::start();
        host.install("--qemu", Path::new(QEMU));
        host.done("create", &[USERSPACE[0], ("VOL_SIZE", "4")]);
        for drive in drives() {
            let device = format!("virtio-blk-pci,id={ID},bus=pci.0,addr=0xd,drive={ID}");
            let mut command = wrapper(&host);
            command.args([
                "-name",
                "n1",
                "-m",
                "64",
                "-smp",
                "2",
                "-machine",
                "pc,accel=tcg",
            ]);
            command.args(["-display", "none", "-net", "none", "-S", "-qmp", "stdio"]);
            command.args(["-device", &device]).args(&drive);
            let mut qemu = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut orders = qemu.stdin.take().unwrap();
            let mut answers = BufReader::new(qemu.stdout.take().unwrap());
            let mut ask = |order: &str| {
                // At once: QEMU ends at the last bracket of a quit, before a line end that comes later.
                orders.write_all(format!("{order}\n").as_bytes()).unwrap();
                loop {
                    let mut line = String::new();
                    assert_ne!(
                        answers.read_line(&mut line).unwrap(),
                        0,
                        "QEMU has ended: {order}"
                    );
                    if line.contains("\"return\"") || line.contains("\"error\"") {
                        return line;
                    }
                }
            };
            ask(r#"{"execute": "qmp_capabilities"}"#);
            let memory = ask(r#"{"execute": "query-memdev"}"#);
            assert!(
                memory.contains("\"share\": true") && memory.contains("67108864"),
                "{memory}"
            );
            let pci = ask(r#"{"execute": "query-pci"}"#);
            assert!(pci.contains(ID) && pci.contains("\"slot\": 13"), "{pci}");
            let devices =
                ask(r#"{"execute": "qom-list", "arguments": {"path": "/machine/peripheral"}}"#);
            assert!(devices.contains("child<vhost-user-blk-pci>"), "{devices}");
            let states = host.status().attachments;
            assert_eq!(states.len(), 1);
            ask(r#"{"execute": "quit"}"#);
            assert!(qemu.wait().unwrap().success());
        }
        // QEMU is gone: nothing is in the way.
        host.done("remove", &USERSPACE);
        host.assert_nothing_is_shown();
    }
}
