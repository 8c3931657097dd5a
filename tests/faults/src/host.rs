//! Another host, as a node sees it: a name, a machine id and a boot id of its own, in namespaces of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

/// Run by a shell in new namespaces: nothing of it reaches the real host.
const ENTER: &str = r#"
echo "$1" >/proc/sys/kernel/hostname &&
mount --bind "$2/boot_id" /proc/sys/kernel/random/boot_id &&
mount --bind "$2/machine-id" /etc/machine-id &&
shift 2 && exec "$@"
"#;

/// A host that is none.
#[derive(Debug)]
pub struct Host {
    name: String,
    files: TempDir,
}

impl Host {
    /// A host called `name`; `machine` and `boot` are made into its ids.
    ///
    /// # Errors
    /// If this process may not make namespaces.
    pub fn new(name: &str, machine: u8, boot: u8) -> Result<Host> {
        let host = Host {
            name: name.to_owned(),
            files: tempfile::tempdir()?,
        };
        let id = format!("{machine:02x}").repeat(16);
        std::fs::write(host.files.path().join("machine-id"), format!("{id}\n"))?;
        host.boot(boot)?;
        let tried = host.command(Path::new("uname")).arg("-n").output()?;
        let said = String::from_utf8_lossy(&tried.stdout);
        ensure!(
            said.trim() == name,
            "namespaces cannot be made: {}",
            String::from_utf8_lossy(&tried.stderr)
        );
        Ok(host)
    }

    /// Processes from now on run after a restart of the machine.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn boot(&self, boot: u8) -> Result<()> {
        let id = format!("{boot:02x}");
        let (pair, four) = (id.repeat(2), id.repeat(4));
        let text = format!("{four}-{pair}-{pair}-{pair}-{}\n", id.repeat(6));
        // Another file: what runs keeps the old one.
        let path: PathBuf = self.files.path().join("boot_id");
        let fresh = self.files.path().join("fresh");
        std::fs::write(&fresh, text)?;
        Ok(std::fs::rename(fresh, path)?)
    }

    /// A command on this host.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--uts", "--", "sh", "-c", ENTER, "sh"])
            .arg(&self.name)
            .arg(self.files.path())
            .arg::<&OsStr>(program.as_ref());
        command
    }
}
