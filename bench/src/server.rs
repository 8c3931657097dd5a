//! The servers that are compared, each in a private directory, stopped by pid when dropped.

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// CPU that servers run on; the client has another one.
pub const SERVER_CPU: &str = "0";
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Clock ticks of `/proc/PID/stat` in a second: fixed by the kernel's user interface.
const TICKS_PER_SECOND: u64 = 100;

/// What a server used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all its processes.
    pub cpu: Duration,
    /// Largest resident memory of all its processes together, in KiB.
    pub rss_kib: u64,
}

/// A process that is killed and reaped when it is dropped.
#[derive(Debug)]
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Where the program `name` of this project is: `$ARCHIPELAGO_BIN_DIR`, or beside this program.
///
/// # Errors
/// If it is in neither place.
pub fn own_program(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe()?.parent().map(Path::to_path_buf);
    let named = std::env::var_os("ARCHIPELAGO_BIN_DIR").map(PathBuf::from);
    named
        .into_iter()
        .chain(beside)
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("`{name}` is neither in $ARCHIPELAGO_BIN_DIR nor beside this program: build it first"))
}

/// Runs a program to its end.
///
/// # Errors
/// If it fails, with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn wait_for_socket(path: &Path, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        if fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended before it listened: {status}");
        }
        ensure!(
            Instant::now() < deadline,
            "no server listens on {} after {START_PATIENCE:?}",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn usage_of(pids: &[u32]) -> Result<Usage> {
    let mut usage = Usage::default();
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Fields after the command, which stands in parentheses: see proc(5); utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .context("malformed stat")?
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        usage.cpu += Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        usage.rss_kib += peak
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .map_or(Ok(0), str::parse)?;
    }
    Ok(usage)
}

/// A server of volumes or images.
pub trait Server {
    /// What the tables call it.
    fn name(&self) -> &str;

    /// Serves the filled volume; the same again serves the same.
    ///
    /// # Errors
    /// If it cannot be served.
    fn filled(&mut self) -> Result<PathBuf>;

    /// Serves a fresh clone of the filled volume, in place of the clone before.
    ///
    /// # Errors
    /// If it cannot be served.
    fn fresh_clone(&mut self) -> Result<PathBuf>;

    /// What it used so far.
    ///
    /// # Errors
    /// If a process is gone.
    fn usage(&self) -> Result<Usage>;
}

/// Archipelago in one placement.
#[derive(Debug)]
pub struct Archipelago {
    name: String,
    root: PathBuf,
    command: PathBuf,
    clones: u32,
}

impl Archipelago {
    /// Starts a node in `dir` with a volume of `size` bytes; `fill` writes it through its socket.
    ///
    /// # Errors
    /// If the node does not start.
    pub fn start(
        dir: &Path,
        placement: &str,
        size: u64,
        fill: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<Self> {
        let root = dir.join(format!("archipelago-{placement}"));
        fs::create_dir_all(&root)?;
        let server = Archipelago {
            name: format!("archipelago-{placement}"),
            root,
            command: own_program("archipelago")?,
            clones: 0,
        };
        server.call(&["init", "--placement", placement])?;
        let mut start = Command::new("taskset");
        start
            .args(["-c", SERVER_CPU])
            .arg(&server.command)
            .arg("--root")
            .arg(&server.root)
            .args(["node", "start"]);
        output(start.stderr(Stdio::inherit()).stdout(Stdio::null()))?;
        server.call(&["volume", "create", "filled", "--size", &size.to_string()])?;
        let socket = server.call(&["volume", "attach", "filled"])?;
        fill(Path::new(socket.trim()))?;
        server.detach("filled")?;
        server.call(&["volume", "snapshot", "filled", "base"])?;
        server.call(&["volume", "create", "owned", "--size", &size.to_string()])?;
        let socket = server.call(&["volume", "attach", "owned"])?;
        fill(Path::new(socket.trim()))?;
        Ok(server)
    }

    /// Detaches a volume whose front end has just gone: it is in use until what it wrote is flushed.
    #[expect(clippy::disallowed_methods, reason = "waits for another process")]
    fn detach(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.call(&["volume", "detach", name]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_in_use) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// A fresh volume of `size` bytes, attached.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn volume(&self, name: &str, size: u64) -> Result<PathBuf> {
        self.call(&["volume", "create", name, "--size", &size.to_string()])?;
        Ok(self.call(&["volume", "attach", name])?.trim().into())
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        output(
            Command::new(&self.command)
                .arg("--root")
                .arg(&self.root)
                .args(arguments),
        )
    }
}

impl Server for Archipelago {
    fn name(&self) -> &str {
        &self.name
    }

    fn filled(&mut self) -> Result<PathBuf> {
        Ok(self.call(&["volume", "attach", "owned"])?.trim().into())
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        let old = format!("clone-{}", self.clones);
        if self.clones > 0 {
            // Not removed: giving its space back in the background would disturb what is measured next.
            self.detach(&old)?;
        }
        self.clones += 1;
        let name = format!("clone-{}", self.clones);
        self.call(&["volume", "clone", "base", &name])?;
        Ok(self.call(&["volume", "attach", &name])?.trim().into())
    }

    fn usage(&self) -> Result<Usage> {
        let status: serde_json::Value =
            serde_json::from_str(&self.call(&["--json", "node", "status"])?)?;
        let pids: Vec<u32> = status["processes"]
            .as_array()
            .context("`node status` tells no processes")?
            .iter()
            .filter_map(|process| process["pid"].as_u64())
            .map(u32::try_from)
            .collect::<Result<_, _>>()?;
        usage_of(&pids)
    }
}

impl Drop for Archipelago {
    fn drop(&mut self) {
        if let Err(error) = self.call(&["node", "stop"]) {
            eprintln!(
                "bench: the node of {} did not stop: {error:#}",
                self.root.display()
            );
        }
    }
}

/// `qemu-storage-daemon` with a raw file, and with a qcow2 overlay on such a file.
#[derive(Debug)]
pub struct QemuStorageDaemon {
    name: String,
    dir: PathBuf,
    size: u64,
    raw: Option<Guarded>,
    clone: Option<Guarded>,
    clones: u32,
}

impl QemuStorageDaemon {
    /// Prepares `dir`; `fill` writes the raw file through the server's socket.
    ///
    /// # Errors
    /// If the server does not start.
    pub fn start(dir: &Path, size: u64, fill: &dyn Fn(&Path) -> Result<()>) -> Result<Self> {
        let dir = dir.join("qemu-storage-daemon");
        fs::create_dir_all(&dir)?;
        File::create(dir.join("raw.img"))?.set_len(size)?;
        File::create(dir.join("base.img"))?.set_len(size)?;
        let mut server = QemuStorageDaemon {
            name: "qemu-storage-daemon".into(),
            dir,
            size,
            raw: None,
            clone: None,
            clones: 0,
        };
        let base = server.serve("base.img", None, "base.sock")?;
        fill(&server.dir.join("base.sock"))?;
        drop(base);
        fill(&server.filled()?)?;
        Ok(server)
    }

    fn serve(&self, file: &str, backing: Option<&str>, socket: &str) -> Result<Guarded> {
        let dir = self.dir.display();
        let open = |file: &str, node: &str| {
            format!(
                "driver=file,filename={dir}/{file},node-name={node},aio=io_uring,cache.direct=on,locking=off,discard=unmap"
            )
        };
        let socket = self.dir.join(socket);
        fs::remove_file(&socket).ok();
        let mut command = Command::new("taskset");
        command.args([
            "-c",
            SERVER_CPU,
            "qemu-storage-daemon",
            "--object",
            "iothread,id=iot0",
        ]);
        command.args(["--blockdev", &open(file, "f")]);
        if let Some(backing) = backing {
            command.args([
                "--blockdev",
                &open(backing, "bf"),
                "--blockdev",
                "driver=raw,file=bf,node-name=b",
            ]);
            command.args([
                "--blockdev",
                "driver=qcow2,file=f,node-name=n,discard=unmap,backing=b",
            ]);
        } else {
            command.args(["--blockdev", "driver=raw,file=f,node-name=n,discard=unmap"]);
        }
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=e,node-name=n,writable=on,num-queues=1,addr.type=unix,addr.path={},iothread=iot0",
            socket.display()
        ));
        let mut child = Guarded(
            command
                .stdin(Stdio::null())
                .spawn()
                .context("start qemu-storage-daemon")?,
        );
        wait_for_socket(&socket, &mut child.0)?;
        Ok(child)
    }
}

impl Server for QemuStorageDaemon {
    fn name(&self) -> &str {
        &self.name
    }

    fn filled(&mut self) -> Result<PathBuf> {
        if self.raw.is_none() {
            self.raw = Some(self.serve("raw.img", None, "raw.sock")?);
        }
        Ok(self.dir.join("raw.sock"))
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        self.clone = None;
        self.clones += 1;
        let overlay = format!("clone-{}.qcow2", self.clones);
        let mut create = Command::new("qemu-img");
        create
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(self.dir.join("base.img"));
        output(
            create
                .arg(self.dir.join(&overlay))
                .arg(self.size.to_string()),
        )?;
        let socket = format!("clone-{}.sock", self.clones);
        self.clone = Some(self.serve(&overlay, Some("base.img"), &socket)?);
        Ok(self.dir.join(socket))
    }

    fn usage(&self) -> Result<Usage> {
        let pids: Vec<u32> = self
            .raw
            .iter()
            .chain(&self.clone)
            .map(|child| child.0.id())
            .collect();
        usage_of(&pids)
    }
}
