//! A disk of a guest over NBD on TCP: the kernel's client, and QEMU's in front of the kernel's.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use archipelago_bench::server::own_program;
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::Guest;

const SIZE: usize = 512 << 20;

/// `archipelago nbd serve`; killed at the end.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(node: &Node) -> Result<Server> {
        let mut command = Command::new(own_program("archipelago")?);
        command.arg("--root").arg(node.root());
        command.args(["nbd", "serve", "--listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("archipelago nbd serve")?;
        let stdout = child.stdout.take().context("a piped standard output")?;
        let mut server = Server { child, port: 0 };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().unwrap_or_default();
        server.port = port.parse().context(line.clone())?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A program of the host's administrator.
fn installed(name: &str) -> Result<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut paths = places.iter().map(|place| Path::new(place).join(name));
    paths
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not installed: tests/install/packages.sh"))
}

/// A node with a volume `disk`, served, and a guest with a network and `programs`.
fn machine(programs: &[&str]) -> Result<(Node, Server, Guest)> {
    let node = Node::start("fused")?;
    node.call(&["volume", "create", "disk", "--size", &SIZE.to_string()])?;
    let server = Server::start(&node)?;
    let mut builder = Guest::builder().network();
    for program in programs {
        builder = builder.program(&installed(program)?);
    }
    let guest = builder.boot()?;
    guest.run("start_network && await 60 is_disk nbd0")?;
    Ok((node, server, guest))
}

#[test]
fn a_guest_uses_a_disk_by_its_kernels_client() -> Result<()> {
    let (node, server, guest) = machine(&["nbd-client"])?;
    // Two connections, which share the volume's handle: the kernel spreads its queues over them.
    guest.run(&format!(
        "/tools/nbd-client -C 2 -N disk 10.0.2.2 {} /dev/nbd0",
        server.port
    ))?;
    guest.run(&format!("await 60 sectors_are nbd0 {}", SIZE / 512))?;
    ensure!(
        guest.run("cat /sys/block/nbd0/queue/write_cache")? == "write back",
        "flushes would not be sent"
    );
    guest.run("battery nbd0")?;
    guest.run("make_fs /dev/nbd0 && make_files 10 256 && umount /mnt")?;
    guest.run("/tools/nbd-client -d /dev/nbd0 && no_errors")?;
    // Everything is durable, and nobody has it open any more.
    let raw = node.root().join("raw");
    let exported = raw.to_str().context("a path in UTF-8")?;
    let closed = (0..100).find_map(|_| {
        let closed = node.call(&["image", "export", "disk", exported]).ok();
        if closed.is_none() {
            let _waited = guest.run("usleep 100000");
        }
        closed
    });
    closed.context("the volume is still open")?;
    let fsck = Command::new("e2fsck").arg("-fn").arg(&raw).output()?;
    ensure!(fsck.status.success(), "{fsck:?}");
    Ok(())
}

#[test]
fn a_guest_uses_a_disk_by_qemus_client_before_its_kernels() -> Result<()> {
    let (_node, server, guest) = machine(&["qemu-nbd"])?;
    guest.run(&format!(
        "mkdir -p /var/lock && (/tools/qemu-nbd -c /dev/nbd0 -f raw --discard=unmap --cache=none nbd://10.0.2.2:{}/disk >/tmp/qemu-nbd 2>&1 &)",
        server.port
    ))?;
    guest.run(&format!(
        "await 60 sectors_are nbd0 {} || {{ cat /tmp/qemu-nbd; false; }}",
        SIZE / 512
    ))?;
    guest.run("make_fs /dev/nbd0 && make_files 10 256 && verify /mnt/fio 32m && rm /mnt/fio && fstrim /mnt && check_files")?;
    guest.run("umount /mnt && check_fs /dev/nbd0 && /tools/qemu-nbd -d /dev/nbd0 && no_errors")?;
    Ok(())
}
