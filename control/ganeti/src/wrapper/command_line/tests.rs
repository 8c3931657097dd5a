//! Command lines as Ganeti 3.0.2 and 3.1 write them.

use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

const VOLUME: &str = "8ac6d6ff-3b4c-4c5e-9d6b-6a2a0f7d5d11.ext.disk0";
const OTHER: &str = "0a1b2c3d-3b4c-4c5e-9d6b-6a2a0f7d5d12.ext.disk1";
const ID: &str = "disk-932df160-7a22-4067";
const OTHER_ID: &str = "disk-11111111-2222-3333";

/// What both versions write before and behind the disks.
fn machine() -> Vec<OsString> {
    let text = "-name n1.example -m 192 -smp 2 -pidfile /run/ganeti/kvm-hypervisor/pid/n1.example -device virtio-balloon -daemonize \
        -D /var/log/ganeti/kvm/n1.example.log -machine pc-i440fx-7.2 -kernel /boot/vmlinuz";
    let mut arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
    arguments.extend(["-append", "root=/dev/vda ro console=ttyS0,38400"].map(OsString::from));
    let text = "-monitor unix:/run/ganeti/kvm-hypervisor/ctrl/n1.example.monitor,server,nowait -usb -display none -net none \
        -qmp unix:/run/n1.qmp,server,nowait";
    arguments.extend(text.split(' ').map(OsString::from));
    arguments
}

fn disk_of_3_0(volume: &str, id: &str, address: &str) -> Vec<String> {
    vec![
        "-device".to_owned(),
        format!("virtio-blk-pci,id={id},bus=pci.0,addr={address},drive={id}"),
        "-drive".to_owned(),
        format!(
            "file=rbd:vhost_user/{volume},format=raw,if=none,aio=threads,cache=none,id={id},auto-read-only=off"
        ),
    ]
}

fn disk_of_3_1(volume: &str, id: &str, address: &str) -> Vec<String> {
    vec![
        "-device".to_owned(),
        format!("virtio-blk-pci,id={id},bus=pci.0,addr={address},drive={id},write-cache=on"),
        "-blockdev".to_owned(),
        format!(
            "driver=raw,node-name={id},discard=ignore,cache.direct=on,cache.no-flush=off,file.driver=rbd,file.pool=vhost_user,\
             file.image={volume},auto-read-only=off"
        ),
    ]
}

/// What either becomes.
fn expected(id: &str, address: &str, socket: &str, queues: u16) -> Vec<String> {
    vec![
        "-device".to_owned(),
        format!(
            "vhost-user-blk-pci,id={id},bus=pci.0,addr={address},chardev=archipelago-{id},num-queues={queues}"
        ),
        "-chardev".to_owned(),
        format!("socket,id=archipelago-{id},path={socket},reconnect=1"),
    ]
}

fn os(texts: Vec<String>) -> Vec<OsString> {
    texts.into_iter().map(OsString::from).collect()
}

fn shared(kind: &str) -> Vec<OsString> {
    let object = format!("{kind},share=on");
    let machine = "memory-backend=archipelago-memory";
    os(["-object", &object, "-machine", machine]
        .map(str::to_owned)
        .to_vec())
}

fn memfd() -> Vec<OsString> {
    shared("memory-backend-memfd,id=archipelago-memory,size=192M")
}

fn endpoint(volume: &Name) -> Endpoint {
    match volume.as_str() {
        VOLUME => Endpoint {
            socket: "/run/archipelago/volume/0.sock".into(),
            queues: 1,
        },
        _ => Endpoint {
            socket: "/run/a,b/1.sock".into(),
            queues: 4,
        },
    }
}

fn rewritten(arguments: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let line = CommandLine::parse(arguments)?;
    let endpoints: Vec<Endpoint> = line.volumes().map(endpoint).collect();
    line.rewrite(&endpoints, Reconnect::Seconds)
}

#[test]
fn disks_of_both_versions_become_vhost_user_disks_at_their_places() {
    for disk in [disk_of_3_0, disk_of_3_1] {
        let mut arguments = machine();
        arguments.extend(os(disk(VOLUME, ID, "0xd")));
        arguments.extend(os(disk(OTHER, OTHER_ID, "0xe")));
        arguments.push("-S".into());
        let mut becomes = machine();
        becomes.extend(os(expected(ID, "0xd", "/run/archipelago/volume/0.sock", 1)));
        // A comma in a path is doubled.
        becomes.extend(os(expected(OTHER_ID, "0xe", "/run/a,,b/1.sock", 4)));
        becomes.push("-S".into());
        becomes.extend(memfd());
        assert_eq!(rewritten(arguments), Ok(becomes));
    }
}

#[test]
fn disks_that_are_not_ours_stay_beside_those_that_are() {
    let others = [
        "-device",
        "virtio-blk-pci,id=disk-x,bus=pci.0,addr=0xf,drive=disk-x",
        "-drive",
        "file=/run/ganeti/instance-disks/n1.example:1,format=raw,if=none,cache=none,id=disk-x",
        "-blockdev",
        "driver=raw,node-name=disk-y,file.driver=rbd,file.pool=vhost_users,file.image=v",
        "-drive",
        "file=rbd:vhost-user/v,format=raw,if=none,id=disk-z",
        "-incoming",
        "tcp:192.0.2.1:8102",
    ]
    .map(OsString::from);
    let mut arguments = machine();
    arguments.extend(others.clone());
    arguments.extend(os(disk_of_3_0(VOLUME, ID, "0xd")));
    let mut becomes = machine();
    becomes.extend(others);
    becomes.extend(os(expected(ID, "0xd", "/run/archipelago/volume/0.sock", 1)));
    becomes.extend(memfd());
    assert_eq!(rewritten(arguments), Ok(becomes));
}

#[test]
fn memory_is_as_large_as_it_was_and_in_huge_pages_if_it_was() {
    let disk = || os(disk_of_3_0(VOLUME, ID, "0xd"));
    let socket = "/run/archipelago/volume/0.sock";
    for (memory, stays, object) in [
        (
            vec!["-m", "192"],
            vec!["-m", "192"],
            "memory-backend-memfd,id=archipelago-memory,size=192M",
        ),
        (
            vec!["-m", "size=2G,slots=2,maxmem=4G"],
            vec!["-m", "size=2G,slots=2,maxmem=4G"],
            "memory-backend-memfd,id=archipelago-memory,size=2G",
        ),
        // kvm_extra comes behind: the last one counts.
        (
            vec!["-m", "192", "-m", "256"],
            vec!["-m", "192", "-m", "256"],
            "memory-backend-memfd,id=archipelago-memory,size=256M",
        ),
        // One without a size adds to the one before.
        (
            vec!["-m", "64", "-m", "slots=2,maxmem=1G"],
            vec!["-m", "64", "-m", "slots=2,maxmem=1G"],
            "memory-backend-memfd,id=archipelago-memory,size=64M",
        ),
        (
            vec!["-m", "512", "-mem-path", "/dev/huge,pages", "-mem-prealloc"],
            vec!["-m", "512", "-mem-prealloc"],
            "memory-backend-file,id=archipelago-memory,size=512M,mem-path=/dev/huge,,pages",
        ),
    ] {
        let mut arguments = os(memory.into_iter().map(str::to_owned).collect());
        arguments.extend(disk());
        let mut becomes = os(stays.into_iter().map(str::to_owned).collect());
        becomes.extend(os(expected(ID, "0xd", socket, 1)));
        becomes.extend(shared(object));
        assert_eq!(rewritten(arguments), Ok(becomes));
    }
}

#[test]
fn a_backend_of_the_command_lines_own_stays_if_it_is_shared() {
    for user in [
        ["-machine", "pc,memory-backend=ram"],
        ["-M", "memory-backend=ram"],
        ["-numa", "node,memdev=ram"],
    ] {
        for (object, is_shared) in [
            (
                "memory-backend-memfd,id=ram,size=192M,share=on,hugetlb=on",
                true,
            ),
            ("memory-backend-memfd,id=ram,size=192M,share=yes", true),
            ("memory-backend-memfd,id=ram,size=192M,share=y", true),
            ("memory-backend-memfd,id=ram,size=192M,share=true", true),
            ("memory-backend-memfd,id=ram,size=192M,share=off", false),
            (
                r#"{"qom-type":"memory-backend-memfd","id":"ram","size":201326592,"share":true}"#,
                false,
            ),
            ("memory-backend-ram,id=ram,size=192M", false),
            ("memory-backend-memfd,id=other,size=192M,share=on", false),
        ] {
            let own = ["-m", "192", "-object", object, user[0], user[1]].map(OsString::from);
            let mut arguments = own.to_vec();
            arguments.extend(os(disk_of_3_1(VOLUME, ID, "0xd")));
            let mut becomes = own.to_vec();
            becomes.extend(os(expected(ID, "0xd", "/run/archipelago/volume/0.sock", 1)));
            match (rewritten(arguments), is_shared) {
                (Ok(arguments), true) => assert_eq!(arguments, becomes),
                (Err(error), false) => {
                    assert!(error.message.contains("`ram` is not shared"), "{error}");
                    let is_json = object.starts_with('{');
                    let says_so = error.hint.contains("write it as key=value");
                    assert_eq!(says_so, is_json, "{}", error.hint);
                }
                (other, _) => panic!("{object}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_cannot_be_a_vhost_user_disk_is_refused_by_its_volume() {
    let drive = format!("file=rbd:vhost_user/{VOLUME},format=raw,if=none,id={ID}");
    let of_scsi = format!("scsi-hd,id={ID},bus=scsi.0,drive={ID}");
    let of_block = format!("virtio-blk-pcie,id={ID},drive={ID}");
    let of_ide = format!("file=rbd:vhost_user/{VOLUME},format=raw,if=ide");
    let of_node = format!("driver=raw,file.driver=rbd,file.pool=vhost_user,file.image={VOLUME}");
    for arguments in [
        vec!["-device", &of_scsi, "-drive", &drive],
        vec!["-device", &of_block, "-drive", &drive],
        vec!["-drive", &drive],
        vec!["-drive", &of_ide],
        vec!["-blockdev", &of_node],
    ] {
        let arguments = os(arguments.into_iter().map(str::to_owned).collect());
        let error = rewritten(arguments).unwrap_err();
        assert!(error.message.contains(VOLUME), "{error}");
        assert!(error.hint.contains("paravirtual"), "{error:?}");
    }
    let error = rewritten(os(disk_of_3_0("a/b", ID, "0xd"))).unwrap_err();
    assert!(error.message.contains("`a/b`"), "{error}");
    let error = rewritten(os(disk_of_3_0(VOLUME, ID, "0xd"))).unwrap_err();
    assert!(error.message.contains("-m"), "{error}");
}

#[test]
fn queues_that_the_command_line_says_stay() {
    let mut disk = disk_of_3_0(VOLUME, ID, "0xd");
    disk[1].push_str(",num-queues=2,bootindex=1");
    let mut arguments: Vec<OsString> = vec!["-m".into(), "1".into()];
    arguments.extend(os(disk));
    let arguments = rewritten(arguments).unwrap();
    let device = format!(
        "vhost-user-blk-pci,id={ID},bus=pci.0,addr=0xd,num-queues=2,bootindex=1,chardev=archipelago-{ID}"
    );
    assert_eq!(arguments[3], OsString::from(device));
}

#[test]
fn probes_and_foreign_bytes_pass() {
    for arguments in [
        vec!["--help".into()],
        vec!["-machine".into(), "?".into()],
        vec!["-device".into(), "?".into()],
        vec!["-version".into()],
        vec![],
        vec!["-drive".into()],
        vec![
            OsString::from_vec(b"-drive\xff".to_vec()),
            OsString::from_vec(b"file=\xff\xfe".to_vec()),
        ],
    ] {
        assert_eq!(rewritten(arguments.clone()), Ok(arguments));
    }
}

#[test]
fn the_version_says_how_a_socket_is_connected_again() {
    for (text, expected) in [
        (
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n",
            Reconnect::Seconds,
        ),
        ("QEMU emulator version 9.1.3", Reconnect::Seconds),
        ("QEMU emulator version 9.2.0", Reconnect::Milliseconds),
        ("QEMU emulator version 10.0.2", Reconnect::Milliseconds),
        ("", Reconnect::Seconds),
    ] {
        assert_eq!(reconnect_of(OsStr::new(text)), expected, "{text}");
    }
}

/// An argument: an option that the wrapper looks at, text of lists, or any bytes.
fn argument() -> impl Strategy<Value = OsString> {
    let option = prop::sample::select(vec![
        "-drive",
        "-device",
        "-blockdev",
        "-m",
        "-mem-path",
        "-machine",
        "-object",
        "--drive",
    ]);
    prop_oneof![
        option.prop_map(OsString::from),
        "[a-z]{1,4}(,[a-z.]{1,6}=[a-z0-9:/,_-]{0,12}){0,3}".prop_map(OsString::from),
        "file=rbd:[a-z_-]{1,9}/v,if=none,id=d".prop_filter_map("ours", |text| {
            (!text.contains(DISK_PREFIX)).then(|| OsString::from(text))
        }),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(OsString::from_vec),
    ]
}

proptest! {
    #[test]
    fn without_a_disk_of_ours_nothing_changes(arguments in prop::collection::vec(argument(), 0..16)) {
        prop_assert_eq!(rewritten(arguments.clone()), Ok(arguments));
    }

    /// Whatever else is there: all of it is there again, in its order, before what is added.
    #[test]
    fn beside_a_disk_of_ours_nothing_else_changes(
        before in prop::collection::vec("[a-z]{0,8}", 0..8),
        after in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..8),
    ) {
        let before: Vec<OsString> = before.into_iter().map(OsString::from).collect();
        let after: Vec<OsString> = after.into_iter().map(|mut bytes| {
            bytes.insert(0, b'x');
            OsString::from_vec(bytes)
        }).collect();
        let memory = ["-m", "192"].map(OsString::from);
        let socket = "/run/archipelago/volume/0.sock";
        let arguments = [before.clone(), memory.to_vec(), os(disk_of_3_1(VOLUME, ID, "0xd")), after.clone()].concat();
        let becomes = [before, memory.to_vec(), os(expected(ID, "0xd", socket, 1)), after, memfd()].concat();
        prop_assert_eq!(rewritten(arguments), Ok(becomes));
    }
}
