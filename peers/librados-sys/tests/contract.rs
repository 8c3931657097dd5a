//! What this crate relies on in librados and in the cluster, call by call, traps included.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::ffi::CStr;
use std::time::Duration;

use archipelago_ceph::{CephCluster, ClusterOptions};
use librados_sys::{
    Cluster, Code, Comparison, Completed, Completions, ConnectOptions, Found, Hint, Payload, Pool,
    ReadOp, WriteOp,
};
use xseg::Region;

const A: &CStr = c"a";
const NAME: &CStr = c"name";

/// A client's pool, with calls one at a time.
struct Client {
    cluster: Cluster,
    pool: Pool,
    completions: Completions,
}

impl Client {
    fn new(ceph: &CephCluster, namespace: &str) -> Client {
        let cluster = ceph.connect();
        let pool = cluster.pool("volumes", namespace).expect("a pool");
        Client {
            cluster,
            pool,
            completions: Completions::new().expect("an eventfd"),
        }
    }

    fn change(&mut self, object: &CStr, op: WriteOp) -> Result<usize, Code> {
        self.pool.operate(&mut self.completions, 7, object, op);
        let Completed { token, result, .. } = self.completions.wait();
        assert_eq!(token, 7);
        result
    }

    fn look(&mut self, object: &CStr, op: ReadOp) -> Result<Found, Code> {
        self.pool.query(&mut self.completions, 8, object, op);
        let completed = self.completions.wait();
        completed.result.map(|_| match completed.payload {
            Payload::Found(found) => found,
            other => panic!("{other:?}"),
        })
    }

    fn read(&mut self, object: &CStr, offset: u64, len: usize) -> Result<Vec<u8>, Code> {
        let buffer = vec![9; len];
        self.pool
            .read_bytes(&mut self.completions, 9, object, offset, buffer);
        let completed = self.completions.wait();
        let Payload::Bytes(mut bytes) = completed.payload else {
            panic!("the buffer comes back");
        };
        bytes.truncate(completed.result?);
        Ok(bytes)
    }
}

fn with_cluster(body: impl FnOnce(&CephCluster)) {
    let ceph = CephCluster::start(ClusterOptions::default());
    ceph.create_pool("volumes", 1);
    body(&ceph);
}

fn mismatch(result: Result<usize, Code>) -> Option<u32> {
    result.expect_err("a mismatch").mismatch_at()
}

#[test]
fn objects_are_written_read_and_compared_as_the_backend_relies_on() {
    with_cluster(|ceph| {
        reads_and_writes(&mut Client::new(ceph, "reads"));
        compound_operations(&mut Client::new(ceph, "compound"));
        attributes(&mut Client::new(ceph, "attributes"));
        sorted_maps(&mut Client::new(ceph, "maps"));
        namespaces(ceph);
        many_at_once(&mut Client::new(ceph, "many"));
        calls_that_librados_refuses(&mut Client::new(ceph, "refused"));
    });
}

fn reads_and_writes(client: &mut Client) {
    assert_eq!(client.read(A, 0, 10), Err(Code::NOT_FOUND));
    let region = Region::anonymous(65_536).expect("memory");
    region.write(4096, b"from shared memory").expect("inside");
    let span = region.span(4096, 18).expect("inside");
    client.pool.write(&mut client.completions, 1, A, 4, span);
    let written = client.completions.wait();
    assert_eq!(written.result, Ok(0));
    assert!(matches!(written.payload, Payload::Span(span) if span.len() == 18));
    let expected = [&[0; 4][..], b"from shared memory"].concat();
    assert_eq!(client.read(A, 0, 100), Ok(expected), "up to the end");
    assert_eq!(client.read(A, 1000, 10), Ok(Vec::new()), "behind the end");
    let into = region.span(0, 100).expect("inside");
    region.fill(0, 100, 7).expect("inside");
    client.pool.read(&mut client.completions, 2, A, 4, into);
    assert_eq!(client.completions.wait().result, Ok(18));
    let mut bytes = [0; 19];
    region.read(0, &mut bytes).expect("inside");
    assert_eq!(&bytes, b"from shared memory\x07", "what is not read stays");
}

fn compound_operations(client: &mut Client) {
    // A condition that does not hold leaves all as it was.
    let op = WriteOp::new().assert_exists().write(0, vec![1]);
    assert_eq!(client.change(A, op), Err(Code::NOT_FOUND));
    assert_eq!(client.read(A, 0, 1), Err(Code::NOT_FOUND));
    // A missing object compares as zeros, and so does what is behind an end: the operation makes the object.
    let op = WriteOp::new()
        .compare(0, &[0; 8])
        .write(0, b"made".to_vec());
    assert_eq!(client.change(A, op), Ok(0));
    let op = WriteOp::new()
        .compare(0, b"made\0\0")
        .write_full(b"12".to_vec());
    assert_eq!(client.change(A, op), Ok(0));
    assert_eq!(
        client.read(A, 0, 9),
        Ok(b"12".to_vec()),
        "replaced as a whole"
    );
    // The code says where the first difference is.
    let op = WriteOp::new().compare(0, b"13").write(0, b"no".to_vec());
    assert_eq!(mismatch(client.change(A, op)), Some(1));
    let op = WriteOp::new().compare(1, b"3").write(0, b"no".to_vec());
    assert_eq!(mismatch(client.change(A, op)), Some(0));
    assert_eq!(client.read(A, 0, 9), Ok(b"12".to_vec()));
    // Once only, also when two try together.
    let exclusive = || WriteOp::new().create_exclusive().write(0, vec![5]);
    for token in [1, 2] {
        let completions = &mut client.completions;
        client
            .pool
            .operate(completions, token, c"once", exclusive());
    }
    let results = [client.completions.wait(), client.completions.wait()].map(|done| done.result);
    assert!(
        results.contains(&Ok(0)) && results.contains(&Err(Code::EXISTS)),
        "{results:?}"
    );
    // Zeros free what is there and make nothing.
    let op = || WriteOp::new().zero(0, 1);
    assert_eq!(client.change(A, op()), Ok(0));
    assert_eq!(client.read(A, 0, 9), Ok(b"\x002".to_vec()));
    assert_eq!(client.change(c"nothing", op()), Ok(0));
    assert_eq!(client.read(c"nothing", 0, 1), Err(Code::NOT_FOUND));
    let op = WriteOp::new()
        .hint(Hint {
            object_len: 4 << 20,
            write_len: 4096,
        })
        .write(0, vec![3; 4096]);
    assert_eq!(client.change(A, op), Ok(0));
    let remove = || WriteOp::new().remove();
    assert_eq!(client.change(A, remove()), Ok(0));
    assert_eq!(client.change(A, remove()), Err(Code::NOT_FOUND));
}

fn attributes(client: &mut Client) {
    let compare = |comparison, value: &[u8]| {
        WriteOp::new()
            .compare_attribute(NAME, comparison, value)
            .write(0, b"changed".to_vec())
    };
    let (equal, at_least) = (Comparison::Equal, Comparison::AtLeast);
    // Of an object that is missing nothing compares.
    assert_eq!(client.change(A, compare(equal, b"")), Err(Code::NOT_FOUND));
    assert_eq!(client.change(A, WriteOp::new().create_exclusive()), Ok(0));
    // A missing attribute is an empty text.
    assert_eq!(client.change(A, compare(equal, b"x")), Err(Code::CANCELED));
    assert_eq!(client.change(A, compare(equal, b"")), Ok(0));
    assert_eq!(client.change(A, compare(at_least, b"0")), Ok(0));
    let set = WriteOp::new().set_attribute(NAME, b"05");
    assert_eq!(client.change(A, set), Ok(0));
    for (comparison, value, holds) in [
        (equal, &b"05"[..], true),
        (equal, b"5", false),
        (equal, b"", false),
        (at_least, b"05", true),
        (at_least, b"06", true),
        (at_least, b"10", true),
        (at_least, b"04", false),
        (at_least, b"", false),
    ] {
        let expected = if holds { Ok(0) } else { Err(Code::CANCELED) };
        let result = client.change(A, compare(comparison, value));
        assert_eq!(result, expected, "{comparison:?} {value:?}");
    }
    let op = ReadOp::new().attributes().len().read(2, 3);
    let found = client.look(A, op).expect("it is there");
    assert_eq!(found.attribute(NAME), b"05");
    assert_eq!(found.attribute(c"other"), b"");
    assert_eq!((found.len, found.data.as_slice()), (7, &b"ang"[..]));
    let missing = client.look(c"nothing", ReadOp::new().attributes());
    assert_eq!(missing, Err(Code::NOT_FOUND));
}

fn sorted_maps(client: &mut Client) {
    for key in ["b", "a", "c"] {
        let op = WriteOp::new().set_key(key.as_bytes(), key.to_uppercase().as_bytes());
        assert_eq!(client.change(A, op), Ok(0), "makes the object");
    }
    let page = |client: &mut Client, after: &CStr, max| {
        let found = client.look(A, ReadOp::new().keys_above(after, max));
        let found = found.expect("it is there");
        (found.keys.concat(), found.values.concat(), found.more)
    };
    assert_eq!(page(client, c"", 2), (b"ab".to_vec(), b"AB".to_vec(), true));
    assert_eq!(page(client, c"b", 2), (b"c".to_vec(), b"C".to_vec(), false));
    let op = WriteOp::new().remove_keys(&[b"a".to_vec(), b"x".to_vec(), b"c".to_vec()]);
    assert_eq!(client.change(A, op), Ok(0), "missing keys do not matter");
    assert_eq!(page(client, c"", 9).0, b"b".to_vec());
    let missing = client.look(c"nothing", ReadOp::new().keys_above(c"", 1));
    assert_eq!(missing, Err(Code::NOT_FOUND));
}

fn namespaces(ceph: &CephCluster) {
    let (mut one, mut other) = (Client::new(ceph, "one"), Client::new(ceph, "other"));
    assert_eq!(one.change(A, WriteOp::new().write_full(vec![1])), Ok(0));
    assert_eq!(other.read(A, 0, 1), Err(Code::NOT_FOUND));
    assert_eq!(one.pool.alignment().expect("an answer"), None);
    assert_eq!(one.cluster.fsid().expect("an id"), ceph.fsid());
    let missing = one.cluster.pool("nothing", "").expect_err("no pool");
    assert_eq!(missing.code(), Code::NOT_FOUND);
}

fn many_at_once(client: &mut Client) {
    const COUNT: u64 = 500;
    for token in 0..COUNT {
        let op = WriteOp::new().write(token * 8, token.to_le_bytes().to_vec());
        client.pool.operate(&mut client.completions, token, A, op);
    }
    assert_eq!(client.completions.in_flight() as u64, COUNT);
    let mut tokens: Vec<u64> = (0..COUNT)
        .map(|_| client.completions.wait().token)
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..COUNT).collect::<Vec<_>>());
    assert_eq!(client.completions.in_flight(), 0);
    assert!(client.completions.poll().is_none());
    // Armed: the next end rings.
    let _silent = client.completions.doorbell().read();
    client
        .pool
        .operate(&mut client.completions, 1, A, WriteOp::new().zero(0, 1));
    let mut ready = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(client.completions.doorbell()),
        nix::poll::PollFlags::POLLIN,
    )];
    assert_eq!(nix::poll::poll(&mut ready, 20_000_u16), Ok(1), "no ring");
    assert!(client.completions.poll().is_some());
}

fn calls_that_librados_refuses(client: &mut Client) {
    // Longer than an object may be: the cluster says so.
    let op = WriteOp::new().write(1 << 40, vec![1]);
    let refused = client.change(A, op).expect_err("too far");
    assert_eq!(refused.errno(), nix::libc::EFBIG);
}

#[test]
fn a_blocklisted_client_changes_nothing_any_more() {
    with_cluster(|ceph| {
        let (mut one, mut other) = (Client::new(ceph, ""), Client::new(ceph, ""));
        assert_eq!(one.change(A, WriteOp::new().write_full(vec![1])), Ok(0));
        let address = one.cluster.addresses().expect("an address");
        other.cluster.blocklist(&address, 60).expect("a monitor");
        other.cluster.wait_for_latest_osdmap().expect("a monitor");
        assert_eq!(other.change(A, WriteOp::new().write_full(vec![2])), Ok(0));
        let refused = one.change(A, WriteOp::new().write_full(vec![3]));
        assert_eq!(refused, Err(Code::BLOCKLISTED));
        assert_eq!(other.read(A, 0, 1), Ok(vec![2]));
        assert!(other.cluster.blocklist("nobody", 60).is_err());
    });
}

#[test]
fn a_cluster_that_cannot_be_used_is_an_error_in_time() {
    let ceph = CephCluster::start(ClusterOptions {
        keys: true,
        ..ClusterOptions::default()
    });
    let options = |keyring| ConnectOptions {
        conf: Some(ceph.conf()),
        keyring: Some(keyring),
        timeout: Duration::from_secs(2),
        ..ConnectOptions::default()
    };
    let errno =
        |options: &ConnectOptions| Cluster::connect(options).map_err(|it| it.code().errno());
    assert!(errno(&options(ceph.write_keyring(true))).is_ok());
    let wrong = errno(&options(ceph.write_keyring(false))).expect_err("a wrong key");
    assert!(
        [nix::libc::EACCES, nix::libc::EPERM].contains(&wrong),
        "{wrong}"
    );
    let missing = ConnectOptions {
        conf: Some("/nowhere/ceph.conf".into()),
        ..options(ceph.write_keyring(true))
    };
    assert_eq!(errno(&missing).err(), Some(nix::libc::ENOENT));
    let cluster = Cluster::connect(&options(ceph.write_keyring(true))).expect("a cluster");
    ceph.kill_monitor();
    let silent = errno(&options(ceph.write_keyring(true)));
    assert_eq!(silent.err(), Some(nix::libc::ETIMEDOUT));
    assert!(cluster.mon_command(r#"{"prefix":"df"}"#).is_err());
}
