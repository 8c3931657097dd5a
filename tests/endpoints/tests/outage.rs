//! Files and block devices of this host while the processes behind them die: requests wait, nobody sees an error, and nobody else gets the
//! volume meanwhile.

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command};
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use archipelago_bench::server::own_program;
    use archipelago_bench::waiting::{now, wait_until};
    use archipelago_crash_tests::node::Node;
    use archipelago_endpoint_tests::deaths::kill_each;
    use archipelago_endpoint_tests::exclusion::is_excluded_over_deaths;
    use archipelago_endpoint_tests::files::{Holder, file_process};
    use archipelago_endpoint_tests::load::Load;
    use archipelago_endpoint_tests::{Attached, Way};
    use archipelago_protocol::Access;
    use nix::errno::Errno;
    use nix::mount::{MntFlags, umount2};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    const TIMEOUT: Duration = Duration::from_secs(20);
    /// Deaths of each process.
    const ROUNDS: usize = 8;
    /// Seconds that a file of the test waits for its node.
    const WAIT_MAX: u64 = 3;

    fn can(way: Way) -> bool {
        Way::here().contains(&way)
    }

    fn open(path: &Path) -> Result<File> {
        Ok(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// Kills each process of a node again and again under a load that must not notice.
    fn nobody_notices(placement: &str, way: Way) -> Result<()> {
        if !can(way) {
            return Ok(());
        }
        let node = Node::start(placement)?;
        node.call(&["volume", "create", "v", "--size", "8M"])?;
        let attached = Attached::new(&node, way, "v", Access::Write, &[])?;
        let path = attached.path().context("a path")?;
        let before = file_process(&node)?;
        // A page cache of a device writes back when it likes: its errors would not be seen here.
        let buffered = usize::from(way == Way::File);
        let load = Load::start(path, 3, buffered)?;
        let killed = kill_each(&node, placement, ROUNDS, &load);
        let (count, longest) = load.finish()?;
        killed?;
        eprintln!("{placement}, {way:?}: {count} operations, the longest took {longest:?}");
        ensure!(file_process(&node)? == before, "another process serves it");
        // The next daemon has adopted all of it.
        let again = Attached::new(&node, way, "v", Access::Write, &[])?;
        ensure!(again.id() == attached.id() && again.path() == attached.path());
        let missing = || "it is never detached".to_owned();
        wait_until(TIMEOUT, missing, || Ok(attached.detach().ok()))
    }

    #[test]
    fn a_file_outlives_the_processes_behind_it_fused() -> Result<()> {
        nobody_notices("fused", Way::File)
    }

    #[test]
    fn a_file_outlives_the_processes_behind_it_split() -> Result<()> {
        nobody_notices("split", Way::File)
    }

    #[test]
    fn a_block_device_outlives_the_processes_behind_it_fused() -> Result<()> {
        nobody_notices("fused", Way::Block)
    }

    #[test]
    fn a_block_device_outlives_the_processes_behind_it_split() -> Result<()> {
        nobody_notices("split", Way::Block)
    }

    /// A mount of `node` by hand, of everything or of what `options` say.
    struct Mount {
        at: PathBuf,
        process: Child,
    }

    impl Mount {
        fn start(node: &Node, options: &[&str]) -> Result<Mount> {
            let at = node.root().join("files");
            std::fs::create_dir(&at)?;
            let mut command = Command::new(own_program("archipelago-fuse")?);
            command.arg("--root").arg(node.root()).args(options);
            let process = command.arg("--").arg(&at).spawn()?;
            let mount = Mount { at, process };
            let missing = || "the mount never comes".to_owned();
            wait_until(TIMEOUT, missing, || {
                Ok(mount.at.join("v").exists().then_some(()))
            })?;
            Ok(mount)
        }

        fn pid(&self) -> Result<Pid> {
            Ok(Pid::from_raw(i32::try_from(self.process.id())?))
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            // It may have ended, or stand still.
            let _ended = self.process.kill().and_then(|()| self.process.wait());
            let _left = umount2(&self.at, MntFlags::MNT_DETACH);
        }
    }

    #[test]
    fn nobody_else_gets_a_volume_while_its_process_is_away_from_it() -> Result<()> {
        if !can(Way::File) {
            return Ok(());
        }
        for placement in ["fused", "split"] {
            let node = Node::start(placement)?;
            node.call(&["volume", "create", "v", "--size", "4M"])?;
            let mount = Mount::start(&node, &[])?;
            let holder = Holder::of(&mount.at.join("v"))?;
            let process = mount.pid()?;
            Node::freeze(process)?;
            let tried = is_excluded_over_deaths(&node, "v");
            kill(process, Signal::SIGCONT)?;
            tried?;
            // It goes on, under the name that the volume has got meanwhile, also if its name is another's by then.
            let file = open(&mount.at.join("v"))?;
            file.write_all_at(&[7; 4096], 0)?;
            node.call(&["volume", "rename", "v", "w"])?;
            Node::kill(node.process_of("endpoint")?)?;
            file.write_all_at(&[8; 4096], 4096)?;
            file.sync_all()?;
            for (from, to) in [("w", "x"), ("x", "w")] {
                node.call(&["volume", "rename", from, to])?;
                node.call(&["volume", "create", from, "--size", "1M"])?;
                Node::kill(node.process_of("endpoint")?)?;
                file.write_all_at(&[9; 4096], 8192)?;
                file.sync_all()?;
                node.call(&["volume", "remove", from])?;
            }
            // And ends with its process.
            drop((file, holder, mount));
            node.call(&["volume", "attach", "w"])?;
        }
        Ok(())
    }

    #[test]
    fn a_node_that_stays_away_is_an_error_until_it_is_back() -> Result<()> {
        if !can(Way::File) {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        let mount = Mount::start(&node, &["--wait-max", &WAIT_MAX.to_string()])?;
        let file = open(&mount.at.join("v"))?;
        file.write_all_at(&[1; 4096], 0)?;
        Node::kill(node.daemon()?)?;
        let began = now();
        // A write may still have been answered.
        let failed = loop {
            if let Err(error) = file.write_all_at(&[2; 4096], 4096) {
                break error;
            }
        };
        let waited = now() - began;
        ensure!(failed.raw_os_error() == Some(Errno::EIO as i32), "{failed}");
        ensure!(
            waited + Duration::from_secs(1) >= Duration::from_secs(WAIT_MAX),
            "it waited for {waited:?} only"
        );
        ensure!(file.sync_all().is_err(), "a sync of nobody succeeds");
        node.restart()?;
        let missing = || "it never comes back".to_owned();
        wait_until(TIMEOUT, missing, || {
            Ok(file.write_all_at(&[3; 4096], 8192).ok())
        })?;
        file.sync_all()?;
        let mut data = [0; 4096];
        file.read_exact_at(&mut data, 0)?;
        ensure!(data == [1; 4096], "what was answered before is lost");
        Ok(())
    }

    #[test]
    fn what_is_in_use_waits_for_the_start_after_a_stop() -> Result<()> {
        if !can(Way::Block) {
            return Ok(());
        }
        for way in [Way::File, Way::Block] {
            let node = Node::start("fused")?;
            node.call(&["volume", "create", "v", "--size", "8M"])?;
            let attached = Attached::new(&node, way, "v", Access::Write, &[])?;
            let load = Load::start(attached.path().context("a path")?, 2, 0)?;
            let stopped = || {
                load.wait_for_progress()?;
                node.call(&["node", "stop"])?;
                node.call(&["node", "start"])?;
                load.wait_for_progress()
            };
            let stopped: Result<()> = stopped();
            let (_count, longest) = load.finish()?;
            stopped?;
            eprintln!("{way:?}: the longest operation took {longest:?}");
            let missing = || "it is never detached".to_owned();
            wait_until(TIMEOUT, missing, || Ok(attached.detach().ok()))?;
        }
        Ok(())
    }

    #[test]
    fn a_file_ends_when_another_node_has_had_its_pool() -> Result<()> {
        if !can(Way::File) {
            return Ok(());
        }
        for placement in ["fused", "split"] {
            let first = Node::start(placement)?;
            first.call(&["volume", "create", "v", "--size", "4M"])?;
            let mount = Mount::start(&first, &[])?;
            let file = open(&mount.at.join("v"))?;
            file.write_all_at(&[1; 4096], 0)?;
            // A stop alone is a pause, however often.
            for round in 2..4 {
                first.call(&["node", "stop"])?;
                first.call(&["node", "start"])?;
                file.write_all_at(&[round; 4096], 0)?;
                file.sync_all()?;
            }
            first.call(&["node", "stop"])?;
            let pool = first.root().join("pool");
            let second = Node::builder(placement).pool(&pool).start()?;
            let other = Mount::start(&second, &[])?;
            let written = open(&other.at.join("v"))?;
            written.write_all_at(&[9; 4096], 0)?;
            written.sync_all()?;
            drop((written, other));
            second.call(&["node", "stop"])?;
            first.call(&["node", "start"])?;
            // For good, before and after somebody opens it anew.
            let fails = || {
                let failed = file.write_all_at(&[4; 4096], 0).err();
                let failed = failed.context("data of another node was written over")?;
                ensure!(failed.raw_os_error() == Some(Errno::EIO as i32), "{failed}");
                let failed = file.sync_all().is_err() && file.read_at(&mut [0], 8192).is_err();
                ensure!(failed, "{placement}: the file goes on");
                Ok(())
            };
            fails()?;
            let anew = open(&mount.at.join("v"))?;
            fails()?;
            let mut data = [0; 4096];
            anew.read_exact_at(&mut data, 0)?;
            ensure!(data == [9; 4096], "{placement}: what the other wrote");
            anew.write_all_at(&[5; 4096], 4096)?;
            anew.sync_all()?;
        }
        Ok(())
    }

    #[test]
    fn a_reader_outlives_an_open_to_write_that_the_node_goes_under() -> Result<()> {
        if !can(Way::File) {
            return Ok(());
        }
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        let mount = Mount::start(&node, &[])?;
        let path = mount.at.join("v");
        let reader = File::open(&path)?;
        // The daemon cannot be asked, and the data process is there.
        let socket = node.root().join("run/api.sock");
        let aside = socket.with_extension("aside");
        std::fs::rename(&socket, &aside)?;
        ensure!(open(&path).is_err(), "the node was not asked");
        std::fs::rename(&aside, &socket)?;
        reader.read_exact_at(&mut [0; 512], 0)?;
        // And one that succeeds takes nothing from it, also over a death.
        open(&path)?.write_all_at(&[1; 4096], 8192)?;
        Node::kill(node.process_of("endpoint")?)?;
        let mut data = [0; 4096];
        reader.read_exact_at(&mut data, 8192)?;
        ensure!(data == [1; 4096], "what was written is not read");
        Ok(())
    }
}
