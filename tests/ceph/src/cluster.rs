//! A cluster that runs, and what tests do to it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_bench::waiting::wait_until;
use librados_sys::{Cluster, Completions, ConnectOptions, WriteOp};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::configuration::{ClusterOptions, KEY, WRONG_KEY, conf, keyring};
use crate::daemon::{Programs, TIMEOUT, tail};

/// Placement groups of a pool: few, so that each is quickly there.
const GROUPS: u32 = 8;
/// Objects that are written before a pool counts as ready: enough to reach each of its groups.
const PROBES: u64 = 64;

/// A cluster of a test's own. Its daemons end when it is dropped, also if the test fails.
#[derive(Debug)]
pub struct CephCluster {
    programs: Programs,
    options: ClusterOptions,
    fsid: String,
    port: u16,
    /// Removed last.
    _directory: TempDir,
}

impl CephCluster {
    /// Starts one, in shared memory.
    ///
    /// # Panics
    /// If a program is missing or fails.
    #[must_use]
    pub fn start(options: ClusterOptions) -> CephCluster {
        let directory = tempfile::Builder::new()
            .prefix("archipelago-ceph-")
            .tempdir_in("/dev/shm")
            .expect("a directory in shared memory");
        let at = directory.path().to_owned();
        for folder in ["run", "log", "mon.a"] {
            fs::create_dir(at.join(folder)).expect("a directory of our own");
        }
        let port = free_port();
        let fsid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a random id");
        let fsid = fsid.trim().to_owned();
        let programs = Programs::new(at);
        fs::write(
            programs.conf(),
            conf(&programs.directory, options, &fsid, port),
        )
        .expect("a file of our own");
        if options.keys {
            fs::write(programs.directory.join("keyring"), keyring(options.osds))
                .expect("a file of our own");
        }
        let cluster = CephCluster {
            programs,
            options,
            fsid,
            port,
            _directory: directory,
        };
        cluster.make();
        cluster.start_monitor();
        for number in 0..options.osds {
            cluster.start_osd(number);
        }
        cluster
    }

    /// Makes the stores of all daemons.
    fn make(&self) {
        let port = self.port;
        let file = |name: &str| self.programs.directory.join(name).display().to_string();
        let osds = self.options.osds.to_string();
        let osdmap = file("osdmap");
        self.programs.run(
            "osdmaptool",
            &["--createsimple", &osds, "--clobber", &osdmap],
        );
        let (address, monmap) = (format!("[v2:127.0.0.1:{port}/0]"), file("monmap"));
        let map = [
            "--create",
            "--clobber",
            "--fsid",
            &self.fsid,
            "--addv",
            "a",
            &address,
            &monmap,
        ];
        self.programs.run("monmaptool", &map);
        let making: Vec<_> = (0..self.options.osds)
            .map(|number| {
                let data = self.programs.directory.join(format!("osd.{number}"));
                fs::create_dir(data).expect("a directory of our own");
                let number = number.to_string();
                let mkfs = ["--mkfs", "-i", number.as_str(), "--no-mon-config"];
                self.programs.start("ceph-osd", &mkfs)
            })
            .collect();
        let keys = file("keyring");
        let mut mkfs = vec![
            "--mkfs", "-i", "a", "--monmap", &monmap, "--osdmap", &osdmap,
        ];
        if self.options.keys {
            mkfs.extend(["--keyring", &keys]);
        }
        self.programs.run("ceph-mon", &mkfs);
        for osd in making {
            osd.finish();
        }
    }

    /// Starts the monitor, or starts it again.
    ///
    /// # Panics
    /// If it fails.
    pub fn start_monitor(&self) {
        self.programs.start_daemon("mon.a", "ceph-mon", "a");
        let listening = wait_until(
            TIMEOUT,
            || "the monitor does not listen".to_owned(),
            || Ok(TcpStream::connect(("127.0.0.1", self.port)).ok()),
        );
        listening.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts an OSD, or starts it again.
    ///
    /// # Panics
    /// If it fails.
    pub fn start_osd(&self, number: u32) {
        let name = format!("osd.{number}");
        self.programs
            .start_daemon(&name, "ceph-osd", &number.to_string());
    }

    /// Kills the monitor.
    pub fn kill_monitor(&self) {
        self.programs.kill("mon.a");
    }

    /// Kills an OSD.
    pub fn kill_osd(&self, number: u32) {
        self.programs.kill(&format!("osd.{number}"));
    }

    /// Stops an OSD where it is; [`CephCluster::resume_osd`] has it go on.
    pub fn freeze_osd(&self, number: u32) {
        self.programs
            .signal(&format!("osd.{number}"), Signal::SIGSTOP);
    }

    /// Has a frozen OSD go on.
    pub fn resume_osd(&self, number: u32) {
        self.programs
            .signal(&format!("osd.{number}"), Signal::SIGCONT);
    }

    /// The configuration file, for clients.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.programs.conf()
    }

    /// The cluster's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.programs.directory
    }

    /// The cluster's id.
    #[must_use]
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// Writes a file with the key of the administrator, or with a wrong one.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn write_keyring(&self, right: bool) -> PathBuf {
        let name = if right { "right" } else { "wrong" };
        let path = self.programs.directory.join(format!("keyring-{name}"));
        let key = if right { KEY } else { WRONG_KEY };
        fs::write(&path, format!("[client.admin]\n\tkey = {key}\n")).expect("a file of our own");
        path
    }

    /// Makes `client.ID` with these caps: a file with its key.
    ///
    /// # Panics
    /// If the cluster refuses it.
    #[must_use]
    pub fn add_client(&self, id: &str, mon: &str, osd: &str) -> PathBuf {
        let quoted = |text: &str| text.replace('"', "\\\"");
        let command = format!(
            r#"{{"prefix":"auth get-or-create","entity":"client.{id}","caps":["mon","{}","osd","{}"]}}"#,
            quoted(mon),
            quoted(osd)
        );
        let keyring = self.mon_command(&self.connect(), &command);
        let path = self.programs.directory.join(format!("keyring-{id}"));
        fs::write(&path, keyring).expect("a file of our own");
        path
    }

    /// A client of its own.
    ///
    /// # Panics
    /// If the cluster does not answer.
    #[must_use]
    pub fn connect(&self) -> Cluster {
        let options = ConnectOptions {
            conf: Some(self.conf()),
            timeout: Duration::from_secs(30),
            ..ConnectOptions::default()
        };
        Cluster::connect(&options).unwrap_or_else(|error| {
            let code = error.code();
            let log = tail(&self.programs.directory.join("log/mon.a.log"));
            panic!("{error}: {code}\n{log}")
        })
    }

    /// Makes a pool of `size` copies, and waits until all of it takes writes.
    ///
    /// # Panics
    /// If the cluster refuses it, or it does not become ready.
    pub fn create_pool(&self, name: &str, size: u32) {
        let cluster = self.connect();
        let commands = [
            format!(
                r#"{{"prefix":"osd pool create","pool":"{name}","pg_num":{GROUPS},"size":{size},"yes_i_really_mean_it":true}}"#
            ),
            format!(
                r#"{{"prefix":"osd pool application enable","pool":"{name}","app":"archipelago"}}"#
            ),
        ];
        for command in commands {
            self.mon_command(&cluster, &command);
        }
        self.wait_for_pool(&cluster, name);
    }

    /// Sends a command in JSON to the monitor: its answer.
    ///
    /// # Panics
    /// If it fails.
    pub fn mon_command(&self, cluster: &Cluster, command: &str) -> Vec<u8> {
        let answer = cluster.mon_command(command);
        answer.unwrap_or_else(|error| panic!("{error}: {}", error.code()))
    }

    fn wait_for_pool(&self, cluster: &Cluster, name: &str) {
        let pool = cluster.pool(name, "").expect("a pool that was just made");
        let mut completions = Completions::new().expect("an eventfd");
        for probe in 0..PROBES {
            let object = std::ffi::CString::new(format!("probe.{probe}")).expect("a name");
            let write = WriteOp::new().write_full(vec![1]);
            pool.operate(&mut completions, probe, &object, write);
        }
        for _ in 0..PROBES {
            let written = completions.wait_for(TIMEOUT).map(|done| done.result);
            assert_eq!(written, Some(Ok(0)), "a first write to {name}");
        }
        for probe in 0..PROBES {
            let object = std::ffi::CString::new(format!("probe.{probe}")).expect("a name");
            pool.operate(&mut completions, probe, &object, WriteOp::new().remove());
            assert_eq!(completions.wait().result, Ok(0));
        }
    }
}

impl Drop for CephCluster {
    fn drop(&mut self) {
        for number in 0..self.options.osds {
            self.programs.kill(&format!("osd.{number}"));
        }
        self.programs.kill("mon.a");
    }
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the host's own");
    listener.local_addr().expect("a bound socket").port()
}
