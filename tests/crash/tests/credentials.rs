//! An endpoint with a user of its own that somebody has taken over: what it tries is refused by name, and the other processes serve on.
//!
//! The intruder is this program in a process of the endpoint's user, without what confines the endpoint: so it is the users,
//! the modes and the peers that refuse, not Landlock. The real endpoint is stopped meanwhile: its user has one channel to
//! each peer, and the intruder takes it.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::program::output;
use archipelago_bench::waiting::wait_until;
use archipelago_crash_tests::model::Model;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::pattern::SECTOR;
use archipelago_crash_tests::verifier::Verifier;
use archipelago_crash_tests::{seed, skip};
use archipelago_protocol::control::Role;
use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{Epoch, ErrorCode, Lineage};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use serde_json::Value;
use xseg::shared::{ConnectOptions, OnServerDeath, SharedClient};
use xseg::{ClientPort, Completion, Submission};

/// In no table of users: numbers will do.
const ENDPOINT: u32 = 64_001;
const STRANGER: u32 = 64_002;
const SIZE: usize = 16 << 20;
/// Tells the intruder where the node is, who it is, and which volumes it knows: one to write, one to read, none.
const ROOT: &str = "INTRUDER_ROOT";
const USER: &str = "INTRUDER_USER";
const VOLUMES: &str = "INTRUDER_VOLUMES";
/// Longest wait for a peer's answer.
const TIMEOUT: Duration = Duration::from_secs(20);

fn is_root() -> bool {
    geteuid().is_root()
}

/// A node whose endpoint has a user of its own.
fn node(section: &str) -> Result<Node> {
    Node::builder("split").endpoint(section).start()
}

fn lineage(node: &Node, name: &str) -> Result<Lineage> {
    let info: Value = serde_json::from_str(&node.call(&["--json", "volume", "info", name])?)?;
    let text = info["lineage"].as_str().context("a volume has a lineage")?;
    Ok(text.parse()?)
}

/// Runs this program's test `intruder` as `user`, and says what it said.
fn intrude(node: &Node, user: u32, volumes: &[Lineage]) -> Result<()> {
    let volumes: Vec<String> = volumes.iter().map(Lineage::to_string).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "intruder", "--nocapture"])
        .env(ROOT, node.root())
        .env(USER, user.to_string())
        .env(VOLUMES, volumes.join(" "));
    let output = output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("all tried"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The program that tries; a test only by the way that it is started.
#[test]
fn intruder() -> Result<()> {
    let Some(root) = std::env::var_os(ROOT) else {
        return Ok(());
    };
    let user: u32 = std::env::var(USER)?.parse()?;
    let volumes: Vec<Lineage> = std::env::var(VOLUMES)?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let root = Path::new(&root);
    tries_files(root, user)?;
    if let [written, read, forbidden] = volumes[..] {
        tries_roles(root)?;
        tries_objects(root, written, [read, forbidden])?;
        tries_volumes(root, written, read, forbidden)?;
    }
    println!("all tried");
    Ok(())
}

/// Files and sockets of the node that are not the endpoint's.
fn tries_files(root: &Path, user: u32) -> Result<()> {
    let refused = |what: &str, result: std::io::Result<()>| match result {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => bail!("{what}: {other:?}"),
    };
    let path = |name: &str| root.join(name);
    for directory in ["pool", "run/journal", "state", "run", "."] {
        refused(directory, fs::read_dir(path(directory)).map(drop))?;
        let file = format!("{directory}/intruder");
        refused(&file, fs::write(path(&file), "x"))?;
    }
    for file in [
        "archipelago.toml",
        "state/attachments.json",
        "run/archipelagod.log",
        "run/grants.json",
    ] {
        refused(file, fs::read(path(file)).map(drop))?;
    }
    for socket in [
        "run/api.sock",
        "run/control-mapper.sock",
        "run/control-blocker.sock",
    ] {
        refused(socket, UnixStream::connect(path(socket)).map(drop))?;
    }
    if user != ENDPOINT {
        for socket in ["run/segment-mapper.sock", "run/segment-blocker.sock"] {
            refused(socket, UnixStream::connect(path(socket)).map(drop))?;
        }
        refused("run/volume", fs::read_dir(path("run/volume")).map(drop))?;
        refused("a file", fs::write(path("run/volume/intruder"), "x"))?;
    }
    Ok(())
}

fn connect(root: &Path, server: &str, role: Role) -> Result<SharedClient> {
    let options = ConnectOptions {
        role: role as u8,
        client_id: 7,
        ring_size: 16,
        arena_len: 1 << 20,
        on_server_death: OnServerDeath::Report,
        allowed_uids: Vec::new(),
    };
    Ok(SharedClient::connect(&root.join(server), options)?)
}

/// Services `port` until `done` says something.
fn wait<T>(
    port: &mut SharedClient,
    mut done: impl FnMut(&mut SharedClient) -> Option<T>,
) -> Result<T> {
    wait_until(
        TIMEOUT,
        || "no answer has come".to_owned(),
        || {
            port.service();
            Ok(done(port))
        },
    )
}

/// Channels in a role that the user is not admitted in.
fn tries_roles(root: &Path) -> Result<()> {
    for (server, role) in [
        ("run/segment-blocker.sock", Role::Mapper),
        ("run/segment-blocker.sock", Role::Blocker),
        ("run/segment-mapper.sock", Role::Mapper),
    ] {
        let mut port = connect(root, server, role)?;
        let refused = wait(&mut port, |port| {
            let answered = port.is_connected() || port.is_refused_for_credentials();
            answered.then(|| port.is_refused_for_credentials())
        })?;
        ensure!(refused, "{server} serves it as {role:?}");
    }
    Ok(())
}

fn ask(port: &mut SharedClient, request: Submission) -> Result<Completion> {
    wait(port, |port| port.is_connected().then_some(()))?;
    port.submit(1, request)?;
    port.publish();
    Ok(wait(port, ClientPort::complete)?.1)
}

/// What only a mapper asks of a blocker, and writes to volumes that it may not write; and what it may.
fn tries_objects(root: &Path, volume: Lineage, others: [Lineage; 2]) -> Result<()> {
    let mut port = connect(root, "run/segment-blocker.sock", Role::Endpoint)?;
    let mut handle = 0;
    let mut ask = |op: ObjectOp, id: ObjectId, len: u32| -> Result<Result<u32, ErrorCode>> {
        let request = ObjectRequest {
            len,
            ..ObjectRequest::new(op, id)
        };
        let mut answered = |entry| -> Result<Result<u32, ErrorCode>> {
            Ok(ObjectReply::decode(&ask(&mut port, entry)?).result)
        };
        if op.is_about_pool() {
            return answered(request.encode(0));
        }
        handle += 1;
        let open = HandleRequest::Open {
            handle,
            object: OpenObject::of(&request, HandleAccess::of(op)),
            again: false,
        };
        let opened = answered(open.encode())?;
        let answer = answered(request.encode(handle))?;
        if opened.is_ok() {
            return Ok(answer);
        }
        ensure!(
            answer == Err(ErrorCode::NotOpen),
            "{op:?} of {id:?}: {answer:?}"
        );
        Ok(opened)
    };
    let head = ObjectId::head(volume);
    let catalogue = ObjectId::head(Lineage::CATALOGUE);
    let (log, pack) = (ObjectId::log(volume, 1), ObjectId::pack(volume, 1));
    let data = ObjectId::data(volume, Epoch(1));
    let [read, forbidden] = others.map(|lineage| ObjectId::data(lineage, Epoch(1)));
    for (op, id, len) in [
        (ObjectOp::ReadSwapped, catalogue, 4032),
        (ObjectOp::CompareAndSwap, catalogue, 512),
        (ObjectOp::CompareAndSwap, head, 512),
        (ObjectOp::ReadSwapped, head, 4032),
        (ObjectOp::Read, log, 4096),
        (ObjectOp::Write, log, 4096),
        (ObjectOp::Sync, log, 0),
        (ObjectOp::Write, pack, 4096),
        (ObjectOp::Read, pack, 4096),
        (ObjectOp::List, catalogue, 4096),
        (ObjectOp::Stat, data, 0),
        (ObjectOp::Punch, data, 4096),
        (ObjectOp::Delete, data, 0),
        (ObjectOp::DeleteLineage, head, 0),
        (ObjectOp::StatPool, catalogue, 0),
        (ObjectOp::Write, read, 4096),
        (ObjectOp::Write, forbidden, 4096),
    ] {
        let answer = ask(op, id, len)?;
        ensure!(
            answer == Err(ErrorCode::Denied),
            "{op:?} of {id:?}: {answer:?}"
        );
    }
    let answer = ask(ObjectOp::SyncPool, catalogue, 0)?;
    ensure!(answer == Ok(0), "a sync of the pool: {answer:?}");
    let answer = ask(ObjectOp::Write, data, 4096)?;
    ensure!(answer == Ok(4096), "a write of data: {answer:?}");
    let answer = ask(ObjectOp::Read, data, 4096)?;
    ensure!(answer == Ok(4096), "a read of data: {answer:?}");
    Ok(())
}

/// Volumes that the user may open for writing, for reading, and not at all.
fn tries_volumes(root: &Path, written: Lineage, read: Lineage, forbidden: Lineage) -> Result<()> {
    let mut port = connect(root, "run/segment-mapper.sock", Role::Endpoint)?;
    let mut ask = |request: MapRequest| -> Result<Result<u32, ErrorCode>> {
        Ok(MapReply::decode(&ask(&mut port, request.encode())?).result)
    };
    for (volume, write) in [(forbidden, false), (forbidden, true), (read, true)] {
        let answer = ask(MapRequest::open(volume, write))?;
        ensure!(
            answer == Err(ErrorCode::Denied),
            "open of {volume}, for writing: {write}: {answer:?}"
        );
    }
    for (volume, write) in [(read, false), (written, true)] {
        match ask(MapRequest::open(volume, write))? {
            Ok(handle) => ensure!(ask(MapRequest::new(MapOp::Close, handle))? == Ok(0)),
            Err(code) => bail!("open of {volume}, for writing: {write}: {code:?}"),
        }
    }
    Ok(())
}

/// Counter `counter` of the peer `peer`.
fn counter(node: &Node, peer: &str, counter: &str) -> Result<u64> {
    let status = node.status()?;
    let processes = status["processes"].as_array().context("processes")?;
    let peers = processes
        .iter()
        .filter_map(|process| process["peers"].as_array());
    peers
        .flatten()
        .find(|found| found["name"] == peer)
        .and_then(|found| found["counters"].as_array())
        .and_then(|counters| counters.iter().find(|found| found[0] == counter))
        .and_then(|found| found[1].as_u64())
        .with_context(|| format!("no counter {counter} of {peer}"))
}

#[test]
fn what_a_taken_over_endpoint_may_not_do_is_refused_and_the_others_go_on() -> Result<()> {
    if !is_root() {
        return skip("another user's process takes root to start");
    }
    let seed = seed();
    let node = node("user = 64001")?;
    let socket = node.create("disk", SIZE)?;
    node.create("written", 1 << 20)?;
    for name in ["read", "secret"] {
        node.call(&["volume", "create", name, "--size", "1M"])?;
    }
    node.call(&["volume", "attach", "read", "--read-only"])?;
    // Attached once is not attached.
    node.call(&["volume", "attach", "secret"])?;
    node.call(&["volume", "detach", "secret"])?;
    let known = [
        lineage(&node, "written")?,
        lineage(&node, "read")?,
        lineage(&node, "secret")?,
    ];
    let mut verifier = Verifier::connect(&socket, Model::new(seed, SIZE / SECTOR), seed)?;
    verifier.run(200)?;
    let processes = ["endpoint", "mapper", "blocker"];
    let before = processes.map(|role| node.process_of(role).ok());

    let endpoint = node.process_of("endpoint")?;
    Node::freeze(endpoint)?;
    let intruded = intrude(&node, ENDPOINT, &known)
        .and_then(|()| intrude(&node, STRANGER, &[]))
        // Names are the mapper's and the daemon's matter: they are served meanwhile.
        .and_then(|()| {
            node.call(&["volume", "create", "other", "--size", "1M"])
                .map(drop)
        });
    Node::thaw(endpoint)?;
    intruded?;

    verifier.run(200)?;
    verifier.check_all()?;
    verifier.flush()?;
    ensure!(
        before == processes.map(|role| node.process_of(role).ok()),
        "a process did not live through it"
    );
    for (peer, expected) in [("blocker-file", 17), ("mapper", 3)] {
        let denied = counter(&node, peer, "denied")?;
        ensure!(denied == expected, "{denied} requests of {peer} denied");
    }
    Ok(())
}

/// A successor knows the grants of its predecessor, and receives later ones.
#[test]
fn peers_that_were_killed_go_on_serving_what_was_granted() -> Result<()> {
    if !is_root() {
        return skip("another user's process takes root to start");
    }
    let seed = seed();
    let node = node("user = 64001")?;
    let socket = node.create("disk", SIZE)?;
    let mut verifier = Verifier::connect(&socket, Model::new(seed, SIZE / SECTOR), seed)?;
    verifier.run(100)?;
    for role in ["blocker", "mapper"] {
        Node::kill(node.process_of(role)?)?;
        verifier.run(100)?;
    }
    let later = node.create("later", SIZE)?;
    let mut another = Verifier::connect(&later, Model::new(seed, SIZE / SECTOR), seed)?;
    another.run(100)?;
    for verifier in [&mut verifier, &mut another] {
        verifier.check_all()?;
        verifier.flush()?;
    }
    Ok(())
}

#[test]
fn an_endpoint_runs_as_its_user_and_its_sockets_belong_to_it() -> Result<()> {
    if !is_root() {
        return skip("another user's process takes root to start");
    }
    for (section, gid, socket_mode) in [
        ("user = 64001", ENDPOINT, 0o600),
        ("user = 64001\ngroup = 64002", STRANGER, 0o660),
    ] {
        let node = node(section)?;
        let path = node.create("disk", SIZE)?;
        // Also if front ends of its group get to the sockets of volumes, it gets to nothing else.
        intrude(&node, STRANGER, &[])?;
        let socket = fs::metadata(path)?;
        ensure!((socket.uid(), socket.gid()) == (ENDPOINT, gid), "{section}");
        let mode = socket.permissions().mode() & 0o777;
        ensure!(mode == socket_mode, "{section}: mode {mode:o}");
        let pid = node.process_of("endpoint")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let (_, value) = line
                .and_then(|line| line.split_once(':'))
                .unwrap_or_default();
            value
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        ensure!(
            field("Uid") == [ENDPOINT; 4].map(|id| id.to_string()),
            "{status}"
        );
        ensure!(
            field("Gid") == [ENDPOINT; 4].map(|id| id.to_string()),
            "{status}"
        );
        ensure!(field("Groups").is_empty(), "{status}");
        ensure!(field("CapPrm") == ["0000000000000000"], "{status}");
    }
    Ok(())
}

#[test]
fn images_are_copied_through_an_endpoint_of_another_user() -> Result<()> {
    if !is_root() {
        return skip("another user's process takes root to start");
    }
    let node = node("user = 64001")?;
    let file = node.root().join("file");
    fs::write(&file, vec![7; 1 << 20])?;
    let path = file.to_str().context("a path in UTF-8")?;
    node.call(&["image", "import", path, "image"])?;
    let copy = node.root().join("copy");
    node.call(&["image", "export", "image", copy.to_str().context("UTF-8")?])?;
    ensure!(fs::read(&copy)? == fs::read(&file)?, "another content");
    // The image is whole: it is not written any more.
    let grants = fs::read_to_string(node.root().join("run/grants.json"))?;
    let image = lineage(&node, "image")?;
    ensure!(grants == format!("{{\"{image}\":\"read\"}}"), "{grants}");
    Ok(())
}
