//! Volumes as files: `archipelago mount`, a real node, the kernel's FUSE, tools that know nothing of us.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::ErrorKind;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use archipelago_protocol::Access;
    use archipelago_segment::{VolumeClient, VolumeOptions};
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, Whence, lseek64};
    use serde_json::Value;

    use crate::harness::{Node, PLACEMENTS, may_mount, run, skip, tool, wait};

    const MIB: u64 = 1 << 20;

    /// A node with its files.
    struct Mount {
        node: Node,
        at: PathBuf,
        /// The process that serves it.
        pid: Pid,
    }

    /// Whether mounts can be made here; says so if not.
    fn can_mount() -> bool {
        let programs = std::env::current_exe().unwrap();
        let programs = programs.ancestors().nth(2).unwrap();
        assert!(
            programs.join("archipelago-fuse").exists(),
            "there is no archipelago-fuse beside the tests: cargo build -p archipelago-fuse, with the same profile"
        );
        if !Path::new("/dev/fuse").exists() {
            skip("this kernel has no /dev/fuse");
            return false;
        }
        may_mount()
    }

    fn pid_of(said: &Value) -> Pid {
        let pid = i32::try_from(said["pid"].as_i64().unwrap()).unwrap();
        assert!(pid > 1);
        Pid::from_raw(pid)
    }

    impl Mount {
        fn start(placement: &str) -> Mount {
            let mut node = Node::start(placement);
            let at = node.path("files");
            std::fs::create_dir(&at).unwrap();
            let said = node.json(&["mount", at.to_str().unwrap()]);
            node.mounted(&at);
            let pid = pid_of(&said);
            Mount { node, at, pid }
        }

        fn at(&self) -> &str {
            self.at.to_str().unwrap()
        }

        fn file(&self, name: &str) -> PathBuf {
            self.at.join(name)
        }

        fn create(&self, name: &str, size: u64) -> PathBuf {
            self.node
                .done(&["volume", "create", name, "--size", &size.to_string()]);
            self.file(name)
        }

        fn writer(&self, name: &str) -> std::io::Result<File> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).open(self.file(name))
        }

        /// What the node exports of `name`: once nobody has it open any more.
        fn exported(&self, name: &str) -> Vec<u8> {
            let path = self.node.path("exported");
            self.node
                .done(&["image", "export", name, path.to_str().unwrap()]);
            std::fs::read(path).unwrap()
        }

        fn umount(&self) {
            self.node.done(&["umount", self.at()]);
        }

        /// Kills the process that hosts `role`.
        fn kill_role(&self, role: &str) {
            let status = self.node.status();
            let processes = status["processes"].as_array().unwrap();
            let hosts = |process: &&Value| {
                let roles = process["roles"].as_array().unwrap();
                roles.iter().any(|hosted| hosted == role)
            };
            kill(
                pid_of(processes.iter().find(hosts).unwrap()),
                Signal::SIGKILL,
            )
            .unwrap();
        }
    }

    fn errno(result: std::io::Result<impl std::fmt::Debug>) -> Errno {
        Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
    }

    fn is_gone(pid: Pid) -> bool {
        // A zombie is not there either: whoever started it has ended.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }

    #[test]
    fn everything_in_the_node_is_a_file_and_only_commands_change_names() {
        if !can_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mount = Mount::start(placement);
            let node = &mount.node;
            let long = "x".repeat(255);
            let names = ["A-Z_a.z0", "vm:disk@host+1", long.as_str()];
            for name in names {
                mount.create(name, MIB);
            }
            node.done(&["volume", "snapshot", names[0], "s"]);
            let image = node.path("raw");
            std::fs::write(&image, vec![7; 4096]).unwrap();
            node.done(&["image", "import", image.to_str().unwrap(), "i"]);

            let entries = std::fs::read_dir(&mount.at).unwrap();
            let mut found: Vec<String> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            let mut expected = [&names[..], &["s", "i"]].concat();
            expected.sort_unstable();
            assert_eq!(found, expected);
            let mode_and_size = |name: &str| {
                let metadata = std::fs::metadata(mount.file(name)).unwrap();
                assert!(metadata.is_file());
                (metadata.mode() & 0o777, metadata.len())
            };
            assert_eq!(mode_and_size(names[1]), (0o600, MIB));
            assert_eq!(mode_and_size("s"), (0o400, MIB));
            assert_eq!(mode_and_size("i"), (0o400, 4096));
            assert_eq!(std::fs::read(mount.file("i")).unwrap(), vec![7; 4096]);

            for absent in ["nothing", ".hidden", "ä", "a b"] {
                let error = std::fs::metadata(mount.file(absent)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{absent}");
            }
            assert_eq!(errno(File::create(mount.file("new"))), Errno::EPERM);
            assert_eq!(errno(std::fs::remove_file(mount.file("s"))), Errno::EPERM);
            let renamed = std::fs::rename(mount.file("s"), mount.file("t"));
            assert_eq!(errno(renamed), Errno::EPERM);
            assert_eq!(errno(mount.writer("s")), Errno::EROFS);
            assert_eq!(errno(mount.writer("i")), Errno::EROFS);

            // By commands: known at once under the new name, and under the old one until the kernel asks again.
            node.done(&["volume", "rename", names[1], "renamed"]);
            assert_eq!(mode_and_size("renamed"), (0o600, MIB));
            node.done(&["volume", "remove", names[0]]);
            wait("the removed volume is no file any more", || {
                !mount.file(names[0]).exists()
            });
            assert!(mount.file("s").exists(), "its snapshot is");
            mount.umount();
            assert_eq!(std::fs::read_dir(&mount.at).unwrap().count(), 0);
            wait("the process ends", || is_gone(mount.pid));
        }
    }

    #[test]
    fn a_loop_device_with_direct_io_holds_a_file_system() {
        if !can_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mount = Mount::start(placement);
            let path = mount.create("disk", 64 * MIB);
            let mut attach = Command::new("losetup");
            attach.args(["--direct-io=on", "--find", "--show"]);
            let output = run(attach.arg(&path));
            if !output.status.success() {
                skip(&format!("no loop device: {output:?}"));
                continue;
            }
            let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            let on_device = || {
                let mut list = Command::new("losetup");
                list.args(["--list", "--noheadings", "--output", "DIO", &device]);
                let direct = run(&mut list).stdout;
                assert_eq!(
                    String::from_utf8_lossy(&direct).trim(),
                    "1",
                    "direct I/O is on"
                );
                let make = ["-q", "-E", "discard", &device];
                tool(Command::new("mkfs.ext4").args(make));
                tool(Command::new("e2fsck").args(["-f", "-n", &device]));
                // What a program has open there keeps the mount.
                let said = mount.node.refused(&["umount", mount.at()], 5);
                assert!(said.contains("is in use"), "{said}");
                let data = File::options().write(true).open(&device).unwrap();
                data.write_all_at(&[9; 65536], 32 * MIB).unwrap();
                data.sync_all().unwrap();
                let discard = ["--offset", "33554432", "--length", "32768", &device];
                tool(Command::new("blkdiscard").args(discard));
            };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(on_device));
            tool(Command::new("losetup").args(["--detach", &device]));
            if let Err(why) = done {
                std::panic::resume_unwind(why);
            }
            let file = File::open(&path).unwrap();
            let mut data = vec![1; 65536];
            file.read_exact_at(&mut data, 32 * MIB).unwrap();
            assert!(data[..32768].iter().all(|byte| *byte == 0), "discarded");
            assert!(data[32768..].iter().all(|byte| *byte == 9));
            // Most of a fresh file system is holes.
            let hole = lseek64(&file, 33 * 1024 * 1024, Whence::SeekHole).unwrap();
            assert_eq!(hole, 33 * 1024 * 1024);
        }
    }

    #[test]
    fn a_file_grows_by_truncate_and_never_shrinks_and_its_end_is_one() {
        if !can_mount() {
            return;
        }
        let mount = Mount::start("fused");
        let path = mount.create("v", MIB);
        // Closed, and open.
        let grow = |size: u64| OpenOptions::new().write(true).open(&path)?.set_len(size);
        let truncate = |size: &str| run(Command::new("truncate").args(["-s", size]).arg(&path));
        assert!(truncate("2M").status.success());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * MIB);
        grow(3 * MIB).unwrap();
        assert_eq!(errno(grow(MIB)), Errno::EPERM);
        assert_eq!(errno(grow(0)), Errno::EPERM);
        assert_eq!(errno(grow(3 * MIB + 1)), Errno::EINVAL);
        assert_eq!(mount.node.json(&["volume", "info", "v"])["size"], 3 * MIB);
        let file = mount.writer("v").unwrap();
        file.write_all_at(&[5; 512], 3 * MIB - 512).unwrap();
        assert_eq!(file.write_at(&[5; 1024], 3 * MIB - 512).unwrap(), 512);
        assert_eq!(errno(file.write_at(&[5], 3 * MIB)), Errno::ENOSPC);
        assert_eq!(file.read_at(&mut [0; 1024], 3 * MIB - 512).unwrap(), 512);
        assert_eq!(file.read_at(&mut [0; 1024], 3 * MIB).unwrap(), 0);
        // While it is open, by the command too.
        mount.node.done(&["volume", "resize", "v", "4M"]);
        wait("the new size is seen", || {
            file.metadata().unwrap().len() == 4 * MIB
        });
        file.write_all_at(&[6; 512], 4 * MIB - 512).unwrap();
        let reserve = fallocate(&file, FallocateFlags::empty(), 0, 4096);
        assert_eq!(reserve, Err(Errno::EOPNOTSUPP), "space cannot be set aside");
        drop(file);
        // With holes, by a tool: less is copied than there is.
        let copy = mount.node.path("copy");
        tool(
            Command::new("cp")
                .args(["--sparse=auto"])
                .arg(&path)
                .arg(&copy),
        );
        assert!(std::fs::read(&copy).unwrap() == mount.exported("v"));
    }

    #[test]
    fn a_file_that_is_written_is_nobody_elses() {
        if !can_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mount = Mount::start(placement);
            let node = &mount.node;
            mount.create("v", MIB);
            mount.create("w", MIB);
            node.done(&["volume", "snapshot", "v", "s"]);
            let open = |name: &str, access| {
                let opened = node.client().open(&name.parse().unwrap(), access)?;
                VolumeClient::connect(&opened.socket, opened.uid, VolumeOptions::default())
            };
            // Somebody else's first.
            let other = open("v", Access::Write).unwrap();
            assert_eq!(errno(mount.writer("v")), Errno::EBUSY);
            assert_eq!(errno(File::open(mount.file("v"))), Errno::EBUSY);
            let log = std::fs::read_to_string(node.path("run/mount.log")).unwrap();
            assert!(
                log.contains("`v` is in use: another process has it open"),
                "{log}"
            );
            other.close().unwrap();

            // A reader of this mount stays one when a writer comes.
            let reader = File::open(mount.file("v")).unwrap();
            assert_eq!(reader.read_at(&mut [0; 512], 0).unwrap(), 512);
            let writer = mount.writer("v").unwrap();
            writer.write_all_at(&[3; 512], 0).unwrap();
            let mut seen = [0; 512];
            reader.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(seen, [3; 512]);
            assert!(open("v", Access::Read).is_err());
            let said = node.refused(&["volume", "remove", "v"], 5);
            assert!(said.contains("another process has it open"), "{said}");
            // Other files, and a frozen thing that others read too.
            let frozen = File::open(mount.file("s")).unwrap();
            let also = open("s", Access::Read).unwrap();
            assert_eq!(frozen.read_at(&mut [0; 512], 0).unwrap(), 512);
            also.close().unwrap();
            mount
                .writer("w")
                .unwrap()
                .write_all_at(&[1; 512], 0)
                .unwrap();
            // A snapshot of what is open.
            node.done(&["volume", "snapshot", "v", "t"]);
            writer.write_all_at(&[4; 512], 0).unwrap();
            let frozen = File::open(mount.file("t")).unwrap();
            frozen.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(seen, [3; 512]);
            drop((reader, writer));
            assert_eq!(mount.exported("v")[..512], [4; 512]);
        }
    }

    #[test]
    fn a_sync_of_a_file_is_a_flush_of_its_volume() {
        if !can_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mount = Mount::start(placement);
            mount.create("v", MIB);
            let file = mount.writer("v").unwrap();
            let flushes = || mount.node.figures()["volume flush_rounds"];
            for sync in [File::sync_all, File::sync_data] {
                file.write_all_at(&[1; 4096], 0).unwrap();
                let before = flushes();
                sync(&file).unwrap();
                assert!(flushes() > before, "{placement}");
            }
        }
    }

    #[test]
    fn a_mount_whose_process_is_killed_gives_errors_and_is_unmounted() {
        if !can_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mount = Mount::start(placement);
            mount.create("v", MIB);
            let file = mount.writer("v").unwrap();
            file.write_all_at(&[8; 4096], 0).unwrap();
            file.sync_all().unwrap();
            kill(mount.pid, Signal::SIGKILL).unwrap();
            // Until the last of its threads has ended a call may still begin, and be broken off.
            wait("the mount is dead", || {
                let written = file.write_at(&[9; 4096], 8192);
                written.is_err_and(|error| error.raw_os_error() == Some(Errno::ENOTCONN as i32))
            });
            for _ in 0..3 {
                assert_eq!(errno(file.write_at(&[9; 4096], 0)), Errno::ENOTCONN);
                assert!(file.sync_all().is_err());
            }
            drop(file);
            let said = mount.node.refused(&["mount", mount.at()], 4);
            assert!(said.contains("umount"), "{said}");
            mount.umount();
            assert!(
                mount
                    .node
                    .refused(&["umount", mount.at()], 3)
                    .contains("is not an Archipelago mount")
            );
            assert_eq!(mount.exported("v")[..4096], [8; 4096]);
            // And again.
            let said = mount.node.json(&["mount", mount.at()]);
            assert_eq!(std::fs::read(mount.file("v")).unwrap()[..4096], [8; 4096]);
            kill(pid_of(&said), Signal::SIGTERM).unwrap();
            wait("a signal unmounts it", || is_gone(pid_of(&said)));
            assert_eq!(std::fs::read_dir(&mount.at).unwrap().count(), 0);
        }
    }

    #[test]
    fn the_death_of_a_data_process_is_a_pause_for_who_has_a_file_open() {
        if !can_mount() {
            return;
        }
        for placement in PLACEMENTS {
            let mount = Mount::start(placement);
            mount.create("v", MIB);
            let file = mount.writer("v").unwrap();
            file.write_all_at(&[1; 4096], 0).unwrap();
            file.sync_all().unwrap();
            for role in ["endpoint", "mapper", "blocker"] {
                file.write_all_at(&[2; 4096], 4096).unwrap();
                mount.kill_role(role);
                let mut data = [0; 4096];
                file.read_exact_at(&mut data, 4096).unwrap();
                assert_eq!(data, [2; 4096], "{role}: what was answered is there");
                file.sync_all().unwrap();
            }
            file.write_all_at(&[3; 4096], 8192).unwrap();

            // A stop: what is open stays so, what is not is opened by nobody. It all comes back with the node.
            mount.create("w", MIB);
            assert_eq!(mount.writer("w").unwrap().metadata().unwrap().len(), MIB);
            mount.node.done(&["node", "stop"]);
            assert_eq!(file.metadata().unwrap().len(), MIB, "as last heard");
            assert_eq!(errno(mount.writer("w")), Errno::EIO);
            mount.node.done(&["node", "start"]);
            file.sync_all().unwrap();
            drop(file);
            assert_eq!(mount.exported("v")[8192..12288], [3; 4096]);
            assert_eq!(std::fs::read(mount.file("v")).unwrap()[..4096], [1; 4096]);
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_said() {
        if !can_mount() {
            return;
        }
        let node = Node::init("fused");
        let at = node.path("files");
        let at = at.to_str().unwrap();
        node.refused_as(&["mount", at], 3, "not-found");
        std::fs::create_dir(at).unwrap();
        let said = node.refused(&["mount", at], 1);
        assert!(said.contains("no node daemon serves"), "{said}");
        let mut mount = Mount::start("fused");
        mount.umount();
        // Read-only.
        mount.create("v", MIB);
        mount
            .node
            .done(&["mount", "--read-only", mount.at.to_str().unwrap()]);
        let at = mount.at.clone();
        mount.node.mounted(&at);
        assert_eq!(errno(mount.writer("v")), Errno::EROFS);
        assert_eq!(std::fs::read(mount.file("v")).unwrap().len(), 1 << 20);
        mount.umount();
    }
}
