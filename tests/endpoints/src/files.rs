//! Files of a node that programs have open, and the process that serves them.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use archipelago_crash_tests::node::Node;
use nix::unistd::Pid;

/// A process that has a file open, so that this one has not: a process that starts another one closes its copy of each open file in
/// between, and the kernel then asks whoever serves the file. If that process is stopped, so is the start, and with it `/proc` of both.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Opens `file` for reading and writing.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn of(file: &Path) -> Result<Holder> {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"exec 9<>"$0" && echo open && exec sleep 600"#]);
        let child = shell.arg(file).stdout(Stdio::piped()).spawn()?;
        let mut holder = Holder(child);
        let mut open = [0; 5];
        let stdout = holder.0.stdout.as_mut().context("a pipe")?;
        stdout.read_exact(&mut open)?;
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// The process that serves files of `node`.
///
/// # Errors
/// If there is none.
pub fn file_process(node: &Node) -> Result<Pid> {
    let root = node.root().to_str().context("UTF-8")?;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("archipelago-fuse") && line.contains(root) {
            let pid = path.file_name().and_then(|name| name.to_str());
            return Ok(Pid::from_raw(pid.context("a number")?.parse()?));
        }
    }
    anyhow::bail!("no process serves a file")
}
