//! Volumes as files and block devices of this host: in what order they come and go, and what is left when parts of them are killed.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use archipelago_bench::server::own_program;
    use archipelago_bench::waiting::wait_until;
    use archipelago_crash_tests::node::Node;
    use archipelago_endpoint_tests::disk::Durable;
    use archipelago_endpoint_tests::files::{Holder, file_process};
    use archipelago_endpoint_tests::fsx::noise;
    use archipelago_endpoint_tests::{Attached, Way};
    use archipelago_protocol::Access;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    /// Of `linux/sched.h`: what `PR_SET_IO_FLUSHER` sets.
    const PF_MEMALLOC_NOIO: u32 = 0x0008_0000;
    /// Of capabilities(7).
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    const TIMEOUT: Duration = Duration::from_secs(20);

    fn can() -> bool {
        Way::here().contains(&Way::Block)
    }

    /// Runs a tool of the system.
    fn tool(arguments: &[&str]) -> Result<String> {
        let output = Command::new(arguments[0]).args(&arguments[1..]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn state(node: &Node) -> Result<String> {
        let list = node.call(&["--json", "volume", "attachments"])?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let state = list["attachments"][0]["state"].as_str();
        Ok(state.unwrap_or("detached").to_owned())
    }

    fn wait_for_state(node: &Node, wanted: &str) -> Result<()> {
        let missing = || format!("it is never {wanted}");
        wait_until(TIMEOUT, missing, || {
            Ok((state(node)? == wanted).then_some(()))
        })
    }

    /// The kernel does not wait for itself when `process` needs memory, if the process may say so.
    fn check_io_flusher(process: Pid) -> Result<()> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let mut lines = status.lines();
        let capabilities = lines.find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = u64::from_str_radix(capabilities.context("capabilities")?.trim(), 16)?;
        if capabilities & CAP_SYS_RESOURCE == 0 {
            eprintln!("skipped: an IO flusher needs CAP_SYS_RESOURCE");
            return Ok(());
        }
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let fields = stat.rsplit_once(')').context("stat")?.1;
        let mut fields = fields.split_whitespace();
        let flags: u32 = fields.nth(6).context("flags")?.parse()?;
        ensure!(flags & PF_MEMALLOC_NOIO != 0, "no IO flusher: {flags:#x}");
        Ok(())
    }

    /// Nothing of the node is mounted or a device.
    fn nothing_is_left(node: &Node) -> Result<()> {
        let root = node.root().to_str().context("UTF-8")?;
        for (what, text) in [
            ("mounted", std::fs::read_to_string("/proc/self/mountinfo")?),
            ("a device", tool(&["losetup", "--list"])?),
        ] {
            let left: Vec<&str> = text.lines().filter(|line| line.contains(root)).collect();
            ensure!(left.is_empty(), "still {what}: {left:?}");
        }
        let entries = std::fs::read_dir(node.root().join("run/attached"));
        ensure!(
            entries.map_or(0, Iterator::count) == 0,
            "directories are left"
        );
        Ok(())
    }

    fn device(attached: &Attached<'_>) -> Result<PathBuf> {
        let link = attached.path().context("a path")?;
        Ok(std::fs::read_link(link)?)
    }

    fn attribute(device: &Path, name: &str) -> Result<String> {
        let number = device.file_name().context("a device")?;
        let path = Path::new("/sys/block").join(number).join(name);
        Ok(std::fs::read_to_string(path)?.trim().to_owned())
    }

    #[test]
    fn a_file_system_on_a_block_device_outlives_what_dies_below_it() -> Result<()> {
        if !can() {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "64M"])?;
        let attached = Attached::new(&node, Way::Block, "v", Access::Write, &[])?;
        let path = attached.path().context("a path")?.to_owned();
        let path = path.to_str().context("UTF-8")?;
        ensure!(
            attribute(&device(&attached)?, "loop/dio")? == "1",
            "cached twice"
        );
        let again = Attached::new(&node, Way::Block, "v", Access::Write, &[])?;
        ensure!(again.id() == attached.id() && device(&again)? == device(&attached)?);
        tool(&["mkfs.ext4", "-q", path])?;
        let at = node.root().join("mounted");
        std::fs::create_dir(&at)?;
        let at = at.to_str().context("UTF-8")?;
        tool(&["mount", path, at])?;
        let file = Path::new(at).join("file");
        std::fs::write(&file, noise(1, 1 << 20))?;
        std::fs::File::open(&file)?.sync_all()?;
        wait_for_state(&node, "connected")?;
        let output = node.output(&["volume", "detach", "v"])?;
        let said = String::from_utf8(output.stderr)?;
        let refused = output.status.code() == Some(5) && said.contains("mounted");
        // What is below the file system dies, and the file system goes on, on the same device.
        let before = device(&attached)?;
        let outlives = || -> Result<()> {
            for round in 2..4 {
                let file = Path::new(at).join(format!("file{round}"));
                std::fs::write(&file, noise(round, 1 << 20))?;
                match round {
                    2 => Node::kill(node.process_of("endpoint")?)?,
                    _ => {
                        Node::kill(node.daemon()?)?;
                        node.restart()?;
                    }
                }
                std::fs::File::open(&file)?.sync_all()?;
                wait_for_state(&node, "connected")?;
                ensure!(device(&attached)? == before, "another device");
            }
            Ok(())
        };
        let outlived = outlives();
        tool(&["umount", at])?;
        ensure!(refused, "{said}");
        outlived?;
        tool(&["mount", path, at])?;
        let found = [1, 2, 3].map(|round| {
            let name = match round {
                1 => "file".to_owned(),
                round => format!("file{round}"),
            };
            std::fs::read(Path::new(at).join(name)).map(|data| data == noise(round, 1 << 20))
        });
        tool(&["umount", at])?;
        for found in found {
            ensure!(found?, "what was synced is lost");
        }
        tool(&["e2fsck", "-f", "-n", path])?;

        // A stop takes everything away, a start makes it again, at the same path.
        node.call(&["node", "stop"])?;
        nothing_is_left(&node)?;
        node.call(&["node", "start"])?;
        wait_for_state(&node, "served")?;
        tool(&["e2fsck", "-f", "-n", path])?;
        attached.detach()?;
        nothing_is_left(&node)
    }

    #[test]
    fn killed_parts_are_made_again_by_an_attach_and_taken_away_by_a_detach() -> Result<()> {
        if !can() {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        for way in [Way::File, Way::Block] {
            let attach = || Attached::new(&node, way, "v", Access::Write, &[]);
            let attached = attach()?;
            wait_for_state(&node, "served")?;
            let mut disk = attached.connect()?;
            disk.write(4096, &[7; 4096], Durable::Now)?;
            drop(disk);
            Node::kill(file_process(&node)?)?;
            wait_for_state(&node, "not-served")?;
            // Made again by the same request.
            let again = attach()?;
            ensure!(again.path() == attached.path());
            let mut disk = again.connect()?;
            let mut found = [0; 4096];
            disk.read(4096, &mut found)?;
            ensure!(found == [7; 4096]);
            drop(disk);
            // By a start of the node.
            Node::kill(file_process(&node)?)?;
            Node::kill(node.daemon()?)?;
            node.restart()?;
            wait_for_state(&node, "served")?;
            // Taken away, dead or not.
            Node::kill(file_process(&node)?)?;
            wait_for_state(&node, "not-served")?;
            attached.detach()?;
            nothing_is_left(&node)?;
        }
        // A name that is a file's stays until that is detached.
        let attached = Attached::new(&node, Way::File, "v", Access::Write, &[])?;
        let renamed = node.output(&["volume", "rename", "v", "w"])?;
        ensure!(renamed.status.code() == Some(5), "{renamed:?}");
        attached.detach()?;
        node.call(&["volume", "rename", "v", "w"])?;
        Ok(())
    }
    #[test]
    fn a_node_whose_root_is_behind_a_link_finds_what_it_has_made() -> Result<()> {
        if !can() {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        node.call(&["node", "stop"])?;
        let link = node.root().with_extension("link");
        std::os::unix::fs::symlink(node.root(), &link)?;
        let program = own_program("archipelago")?;
        let program = program.to_str().context("UTF-8")?;
        let started = tool(&[
            program,
            "--root",
            link.to_str().context("UTF-8")?,
            "node",
            "start",
        ]);
        let check = || {
            started?;
            for way in [Way::File, Way::Block] {
                let attached = Attached::new(&node, way, "v", Access::Write, &[])?;
                wait_for_state(&node, "served")?;
                let again = Attached::new(&node, way, "v", Access::Write, &[])?;
                ensure!(again.path() == attached.path());
                attached.detach()?;
                nothing_is_left(&node)?;
            }
            Ok(())
        };
        let checked = check();
        std::fs::remove_file(&link)?;
        checked
    }

    #[test]
    fn a_process_that_is_silent_is_not_taken_for_a_dead_one() -> Result<()> {
        if !can() {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        let attached = Attached::new(&node, Way::File, "v", Access::Write, &[])?;
        attached.connect()?.write(0, &[7; 4096], Durable::Now)?;
        let holder = Holder::of(attached.path().context("a file has a path")?)?;
        let process = file_process(&node)?;
        check_io_flusher(process)?;
        Node::freeze(process)?;
        let checked = || {
            wait_for_state(&node, "unknown")?;
            let refused = node.output(&["volume", "detach", "v"])?;
            ensure!(refused.status.code() == Some(5), "{refused:?}");
            Ok(())
        };
        let checked = checked();
        kill(process, Signal::SIGCONT)?;
        checked?;
        drop(holder);
        let mut found = [0; 4096];
        attached.connect()?.read(0, &mut found)?;
        ensure!(found == [7; 4096]);
        // A stop does not wait for a process that stands still.
        Node::freeze(process)?;
        wait_for_state(&node, "unknown")?;
        let daemon = node.daemon()?;
        let stopped = node.call(&["node", "stop"]);
        let missing = || "the daemon does not end".to_owned();
        let ended = wait_until(TIMEOUT, missing, || {
            Ok((!Path::new(&format!("/proc/{daemon}")).exists()).then_some(()))
        });
        Node::kill(process)?;
        stopped?;
        ended
    }

    #[test]
    fn attaches_and_detaches_at_once_leave_nothing_that_is_not_noted() -> Result<()> {
        if !can() {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        std::thread::scope(|scope| {
            for option in ["--fuse", "--fuse", "--block"] {
                let node = &node;
                scope.spawn(move || {
                    for _again in 0..8 {
                        // Each may come too late or too early.
                        node.output(&["volume", "attach", "v", option]).ok();
                        node.output(&["volume", "detach", "v"]).ok();
                    }
                });
            }
        });
        node.output(&["volume", "detach", "v"])?;
        ensure!(state(&node)? == "detached");
        nothing_is_left(&node)
    }
}
