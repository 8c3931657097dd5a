//! `archipelago nbd serve` while the processes of its node die: requests of its clients wait, no connection ends, and nobody else gets the
//! volume meanwhile.

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use archipelago_bench::server::own_program;
    use archipelago_bench::waiting::{now, wait_until};
    use archipelago_crash_tests::node::Node;
    use archipelago_endpoint_tests::deaths::kill_each;
    use archipelago_endpoint_tests::disk::Durable;
    use archipelago_endpoint_tests::exclusion::is_excluded_over_deaths;
    use archipelago_endpoint_tests::load::Load;
    use archipelago_endpoint_tests::{Attached, Way, nbd_connection};
    use archipelago_protocol::Access;
    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    const TIMEOUT: Duration = Duration::from_secs(20);
    /// Deaths of each process.
    const ROUNDS: usize = 5;
    /// Seconds that a server of the test waits for its node.
    const WAIT_MAX: u64 = 3;

    /// A server of the export `v`, which is its default export too.
    struct Server {
        process: Child,
        socket: PathBuf,
    }

    impl Server {
        fn start(node: &Node, options: &[&str]) -> Result<Server> {
            let socket = node.root().join("exports.sock");
            let mut command = Command::new(own_program("archipelago-nbd-tcp")?);
            command.arg("--root").arg(node.root()).args(options);
            command.arg("--socket").arg(&socket).arg("v");
            let mut process = command.stdout(Stdio::piped()).spawn()?;
            let mut line = String::new();
            let output = process.stdout.take().context("a pipe")?;
            BufReader::new(output).read_line(&mut line)?;
            let server = Server { process, socket };
            ensure!(line.starts_with("listening"), "it does not serve: {line:?}");
            Ok(server)
        }

        fn pid(&self) -> Result<Pid> {
            Ok(Pid::from_raw(i32::try_from(self.process.id())?))
        }

        /// Ends it as an operator does.
        fn end(mut self) -> Result<()> {
            kill(self.pid()?, Signal::SIGTERM)?;
            let status = self.process.wait()?;
            ensure!(status.success(), "{status}");
            Ok(())
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            // It may have ended, or stand still.
            let _ended = self.process.kill().and_then(|()| self.process.wait());
        }
    }

    fn nobody_notices(placement: &str) -> Result<()> {
        let node = Node::start(placement)?;
        node.call(&["volume", "create", "v", "--size", "8M"])?;
        let server = Server::start(&node, &[])?;
        let load = Load::start_nbd(&server.socket, 4)?;
        let deaths = || {
            kill_each(&node, placement, ROUNDS, &load)?;
            for _ in 0..2 {
                node.call(&["node", "stop"])?;
                node.call(&["node", "start"])?;
                load.wait_for_progress()?;
            }
            Ok(())
        };
        let deaths: Result<()> = deaths();
        let (count, longest) = load.finish()?;
        deaths?;
        eprintln!("{placement}: {count} operations, the longest took {longest:?}");
        server.end()?;
        // The volume is free again, and holds what was answered: the load has verified it.
        node.call(&["volume", "remove", "v"])?;
        Ok(())
    }

    #[test]
    fn connections_outlive_the_processes_behind_them_fused() -> Result<()> {
        nobody_notices("fused")
    }

    #[test]
    fn connections_outlive_the_processes_behind_them_split() -> Result<()> {
        nobody_notices("split")
    }

    #[test]
    fn nobody_else_gets_a_volume_while_its_server_is_away_from_it() -> Result<()> {
        for placement in ["fused", "split"] {
            let node = Node::start(placement)?;
            node.call(&["volume", "create", "v", "--size", "4M"])?;
            let server = Server::start(&node, &[])?;
            let mut disk = nbd_connection(&server.socket)?;
            disk.write(0, &[1; 4096], Durable::Later)?;
            let process = server.pid()?;
            Node::freeze(process)?;
            let tried = is_excluded_over_deaths(&node, "v");
            kill(process, Signal::SIGCONT)?;
            tried?;
            // It goes on, under the name that the volume has got meanwhile.
            node.call(&["volume", "rename", "v", "w"])?;
            Node::kill(node.process_of("endpoint")?)?;
            disk.write(4096, &[2; 4096], Durable::Now)?;
            let mut data = [0; 8192];
            disk.read(0, &mut data)?;
            ensure!(data[..4096] == [1; 4096] && data[4096..] == [2; 4096]);
            // And the reservation ends with the last client.
            drop(disk);
            let missing = || "it is never free".to_owned();
            wait_until(TIMEOUT, missing, || {
                Ok(node.call(&["volume", "attach", "w"]).ok())
            })?;
        }
        Ok(())
    }

    #[test]
    fn a_server_that_is_killed_away_from_its_volume_keeps_nobody_from_it() -> Result<()> {
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        let server = Server::start(&node, &[])?;
        let mut disk = nbd_connection(&server.socket)?;
        disk.write(0, &[1; 4096], Durable::Later)?;
        Node::freeze(server.pid()?)?;
        Node::kill(node.process_of("endpoint")?)?;
        drop(server);
        let attached = Attached::new(&node, Way::Nbd, "v", Access::Write, &[])?;
        let mut data = [0; 4096];
        attached.connect()?.read(0, &mut data)?;
        ensure!(data == [1; 4096], "what was answered is lost");
        Ok(())
    }

    #[test]
    fn a_node_that_stays_away_is_an_error_until_it_is_back() -> Result<()> {
        let node = Node::start("fused")?;
        node.call(&["volume", "create", "v", "--size", "4M"])?;
        let server = Server::start(&node, &["--wait-max", &WAIT_MAX.to_string()])?;
        let mut disk = nbd_connection(&server.socket)?;
        disk.write(0, &[1; 4096], Durable::Later)?;
        Node::kill(node.daemon()?)?;
        let began = now();
        // A write may still have been answered.
        let failed = loop {
            if let Err(error) = disk.write(4096, &[2; 4096], Durable::Later) {
                break error;
            }
        };
        let waited = now() - began;
        ensure!(failed.raw_os_error() == Some(Errno::EIO as i32), "{failed}");
        ensure!(
            waited + Duration::from_secs(1) >= Duration::from_secs(WAIT_MAX),
            "it waited for {waited:?} only"
        );
        ensure!(disk.flush().is_err(), "a flush to nobody succeeds");
        ensure!(disk.read(0, &mut [0; 512]).is_err(), "a read of nothing");
        node.restart()?;
        let missing = || "it never comes back".to_owned();
        wait_until(TIMEOUT, missing, || {
            Ok(disk.write(8192, &[3; 4096], Durable::Later).ok())
        })?;
        disk.flush()?;
        let mut data = [0; 4096];
        disk.read(0, &mut data)?;
        ensure!(data == [1; 4096], "what was answered before is lost");
        Ok(())
    }

    /// Writes over an NBD server of its own.
    fn write_elsewhere(node: &Node, data: &[u8]) -> Result<()> {
        let server = Server::start(node, &[])?;
        nbd_connection(&server.socket)?.write(0, data, Durable::Now)?;
        server.end()
    }

    fn pool_of(node: &Node) -> PathBuf {
        node.root().join("pool")
    }

    #[test]
    fn a_connection_ends_when_another_node_has_had_its_pool() -> Result<()> {
        let first = Node::start("fused")?;
        first.call(&["volume", "create", "v", "--size", "4M"])?;
        let server = Server::start(&first, &[])?;
        let mut disk = nbd_connection(&server.socket)?;
        disk.write(0, &[1; 4096], Durable::Now)?;
        first.call(&["node", "stop"])?;
        let second = Node::builder("fused").pool(&pool_of(&first)).start()?;
        write_elsewhere(&second, &[9; 4096])?;
        second.call(&["node", "stop"])?;
        first.call(&["node", "start"])?;
        let failed = disk.write(0, &[4; 4096], Durable::Later);
        ensure!(failed.is_err(), "data of another node was written over");
        let mut data = [0; 4096];
        nbd_connection(&server.socket)?.read(0, &mut data)?;
        ensure!(data == [9; 4096], "what the other one wrote");
        Ok(())
    }
}
