//! What a throw-away cluster is told: its configuration file and its keys.

use std::fmt::Write as _;
use std::path::Path;

/// What the OSDs store on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Memory of the OSD's process: lost with it.
    Memory,
    /// BlueStore on a sparse file.
    Blue,
}

/// How a cluster is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterOptions {
    /// How many OSDs.
    pub osds: u32,
    /// What they store on.
    pub store: Store,
    /// Whether clients need keys (cephx).
    pub keys: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            osds: 1,
            store: Store::Memory,
            keys: false,
        }
    }
}

/// A key of cephx: type 1, no time, 16 bytes. One for all: the cluster is a test's.
pub(crate) const KEY: &str = "AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA0ODw==";
/// Another key, which no cluster accepts.
pub(crate) const WRONG_KEY: &str = "AQAAAAAAAAAAABAA//79/Pv6+fj39vX08/Lx8A==";

/// The configuration file of a cluster in `directory`, whose monitor listens on `port`.
pub(crate) fn conf(directory: &Path, options: ClusterOptions, fsid: &str, port: u16) -> String {
    let at = directory.display();
    let auth = if options.keys { "cephx" } else { "none" };
    let store = match options.store {
        Store::Memory => "memstore",
        Store::Blue => "bluestore",
    };
    let mut text = format!(
        "[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}/0
public addr = 127.0.0.1
ms bind msgr1 = false
auth cluster required = {auth}
auth service required = {auth}
auth client required = {auth}
mon data = {at}/mon.a
osd data = {at}/osd.$id
run dir = {at}/run
admin socket = {at}/run/$name.asok
pid file = {at}/run/$name.pid
log file = {at}/log/$name.log
paxos propose interval = 0.01
paxos min wait = 0.005
mon allow pool size one = true
mon allow pool delete = true
mon data avail crit = 0
mon data avail warn = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
osd heartbeat grace = 4
mon osd min down reporters = 1
osd objectstore = {store}
memstore device bytes = 4294967296
bluestore block create = true
bluestore block size = 8589934592
bluestore fsck on mkfs = false
bdev aio poll ms = 10
"
    );
    if options.keys {
        let _written = writeln!(text, "keyring = {at}/keyring");
    }
    text.push_str("[client]\nadmin socket =\npid file =\nlog file =\n");
    text
}

/// The keys of all daemons and of the administrator.
pub(crate) fn keyring(osds: u32) -> String {
    let mut text = format!(
        "[mon.]\n\tkey = {KEY}\n\tcaps mon = \"allow *\"\n[client.admin]\n\tkey = {KEY}\n\tcaps mon = \"allow *\"\n\tcaps osd = \"allow *\"\n\tcaps mgr = \"allow *\"\n"
    );
    for number in 0..osds {
        let _written = write!(
            text,
            "[osd.{number}]\n\tkey = {KEY}\n\tcaps mon = \"allow profile osd\"\n\tcaps osd = \"allow *\"\n"
        );
    }
    text
}
