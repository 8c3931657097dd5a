//! A node inside of a guest whose kernel has ublk: volumes as block devices of that kernel, over file systems, kills and restarts.
//! The pool is a file system on a disk of the guest.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "figures")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use archipelago_bench::load::Random;
use archipelago_bench::server::own_program;
use archipelago_crash_tests::skip;
use archipelago_vm_tests::guest::Guest;
use tempfile::TempDir;

/// Of the disk that holds the pool.
const POOL_LEN: u64 = 2 << 30;
/// Of a volume.
const SIZE: &str = "256M";
/// For the kernel, the programs and what a file system caches.
const MEMORY_MIB: u32 = 1024;
/// Kills in a placement.
const KILLS: u32 = 8;
/// Longest wait of a request over a kill, in hundredths of a second of the guest: on a host with nothing else to do it is a third
/// of a second, of which the emulation takes most.
const WAIT_MAX: u64 = 600;

/// A guest with a node, and the disk of its pool.
struct Host {
    guest: Guest,
    _dir: TempDir,
}

impl Host {
    /// `None`: the kernel of the guests has no ublk, which is said.
    fn boot(placement: &str) -> Result<Option<Host>> {
        let dir = tempfile::Builder::new().prefix("ublk-").tempdir()?;
        let disk = dir.path().join("disk");
        std::fs::File::create(&disk)?.set_len(POOL_LEN)?;
        let mut builder = Guest::builder().memory_mib(MEMORY_MIB).file(&disk);
        for program in ["archipelago", "archipelagod"] {
            builder = builder.program(&own_program(program)?);
        }
        let guest = builder.boot()?;
        if !guest.run("ls /dev")?.contains("ublk-control") {
            skip("the newest kernel on offer for guests has no ublk")?;
            return Ok(None);
        }
        guest.run(&format!("start_node /dev/vda {placement}"))?;
        Ok(Some(Host { guest, _dir: dir }))
    }

    fn run(&self, command: &str) -> Result<String> {
        self.guest.run(command)
    }

    /// Runs `command`, which has to fail with all of `words`.
    fn refused(&self, command: &str, words: &[&str]) -> Result<()> {
        let text = self.run(&format!("{command} 2>&1 && fail unexpected success; true"))?;
        for word in words {
            ensure!(text.contains(word), "{command}: {text} has no `{word}`");
        }
        Ok(())
    }

    /// Makes and attaches the volume `name`: its device.
    fn attach(&self, name: &str, size: &str) -> Result<String> {
        self.run(&format!("archipelago volume create {name} --size {size}"))?;
        let path = self.run(&format!("archipelago volume attach {name} --ublk"))?;
        let device = path.strip_prefix("/dev/").context("a path below /dev")?;
        Ok(device.to_owned())
    }
}

#[test]
fn a_device_serves_a_whole_life() -> Result<()> {
    let Some(host) = Host::boot("fused")? else {
        return Ok(());
    };
    let device = host.attach("disk", SIZE)?;
    for (file, expected) in [
        ("queue/write_cache", "write back"),
        ("queue/fua", "1"),
        ("queue/logical_block_size", "512"),
        ("queue/physical_block_size", "4096"),
        ("queue/max_hw_sectors_kb", "128"),
        ("queue/discard_granularity", "4096"),
        ("queue/discard_max_hw_bytes", "1073741824"),
        ("queue/write_zeroes_max_bytes", "1073741824"),
        ("ro", "0"),
    ] {
        let found = host.run(&format!("cat /sys/block/{device}/{file}"))?;
        ensure!(found == expected, "{file}: {found}");
    }
    host.run("all_serve_write_back")?;
    host.run(&format!("battery {device}"))?;
    // The files outlive a detach, whatever number the device has then; and nobody is detached from under a file system.
    host.run(&format!("make_fs /dev/{device} && make_files 10 256"))?;
    let detach = "archipelago volume detach disk";
    host.refused(detach, &["in use", "mounted"])?;
    host.run(&format!("umount /mnt && losetup /dev/loop0 /dev/{device}"))?;
    host.refused(detach, &["in use", "`loop0`"])?;
    host.run("losetup -d /dev/loop0")?;
    host.refused(
        &format!("(sleep 100 </dev/{device} & echo $! >/tmp/user); usleep 100000; {detach}"),
        &["in use", "`sleep`"],
    )?;
    host.run(&format!(
        "kill $(cat /tmp/user) && {detach} && await 10 is_gone {device}"
    ))?;
    let left = host.run("ls /dev/ublk*")?;
    ensure!(left == "/dev/ublk-control", "left over: {left}");
    let path = host.run("archipelago volume attach disk --ublk")?;
    host.run(&format!(
        "mount -t ext4 {path} /mnt && check_files && umount /mnt && check_fs {path}"
    ))?;
    let list = host.run("archipelago volume attachments disk")?;
    ensure!(list.contains("ublk") && list.contains(&path), "{list}");
    // What a cleanly stopped node leaves waits for the next one.
    host.run("archipelago node stop && archipelago node start")?;
    host.run(&format!(
        "mount -t ext4 {path} /mnt && check_files && no_errors"
    ))?;
    // The host loses power: the device is made again, with the same number, and holds what was synced.
    host.guest.reset()?;
    host.run("mkdir -p /node && mount -t ext4 /dev/vda /node && archipelago node start")?;
    host.run(&format!(
        "recover_fs {path} && mount -t ext4 {path} /mnt && check_files && umount /mnt && no_errors"
    ))?;
    // A device that no attachment names, as an attach leaves behind whose daemon dies in its midst.
    host.run("archipelago node stop && rm $(find /node/root -name attachments.json)")?;
    host.run(&format!(
        "[ -b {path} ] && archipelago node start && [ ! -e {path} ]"
    ))?;
    Ok(())
}

#[test]
fn a_snapshot_is_read_only_and_an_odd_size_is_exact() -> Result<()> {
    let Some(host) = Host::boot("split")? else {
        return Ok(());
    };
    // A sector more than whole blocks.
    let sectors = 65_536 + 1;
    let device = host.attach("odd", &(sectors * 512).to_string())?;
    let size = host.run(&format!("cat /sys/block/{device}/size"))?;
    ensure!(size == sectors.to_string(), "{size} sectors");
    host.run(&format!(
        "head -c {} /dev/urandom >/tmp/noise && dd if=/tmp/noise of=/dev/{device} bs=1M conv=fsync 2>/dev/null && \
         blockdev --flushbufs /dev/{device} && cmp /tmp/noise /dev/{device}",
        sectors * 512
    ))?;
    host.run("archipelago volume snapshot odd frozen")?;
    host.run(&format!(
        "blkdiscard -f -z /dev/{device} && is_zero /dev/{device} 65536 1"
    ))?;
    let path = host.run("archipelago volume attach frozen --ublk")?;
    host.run(&format!(
        "cmp /tmp/noise {path} && [ $(blockdev --getro {path}) = 1 ]"
    ))?;
    host.refused(
        &format!("dd if=/tmp/noise of={path} count=1"),
        &["ermitted"],
    )?;
    host.refused(
        "archipelago volume attach frozen --ublk --queues 2",
        &["cannot be used with"],
    )?;
    // The size of a device that runs, as far as the kernel can change it.
    let resize = "archipelago volume resize odd 64M";
    let resized = host.run(&format!("{resize} 2>&1; true"))?;
    if resized.contains("6.16") {
        host.run(&format!("archipelago volume detach odd && {resize}"))?;
        host.run("archipelago volume attach odd --ublk")?;
    }
    host.run(&format!("await 10 sectors_are {device} 131072"))?;
    host.run("no_errors")?;
    Ok(())
}

/// Kills of data processes and of the whole node, with requests in flight: nobody sees an error, and what was written is there.
fn survives(placement: &str, roles: &[&str]) -> Result<()> {
    let Some(host) = Host::boot(placement)? else {
        return Ok(());
    };
    let device = host.attach("disk", SIZE)?;
    host.run(&format!(
        "mkfs.ext4 -q -F /dev/{device} 64M && mount -t ext4 /dev/{device} /mnt && make_files 10 256"
    ))?;
    // Behind the file system.
    host.run(&format!("start_load /dev/{device} 64m --offset=80m"))?;
    let mut random = Random::new(1);
    let (mut met, mut longest) = (0, 0);
    for number in 0..KILLS {
        let command = if number % 4 == 3 {
            format!("kill_node_beneath {device}")
        } else {
            let at = random.below(roles.len() as u64);
            let role = roles[usize::try_from(at)?];
            format!("kill_beneath {device} {role}")
        };
        let before = random.below(400_000);
        let text = host.run(&format!(
            "usleep {before}; {command} || {{ show_node_log; false; }}"
        ))?;
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        let numbers = numbers.with_context(|| text.clone())?;
        let [in_flight, waited] = numbers[..] else {
            anyhow::bail!("{command}: {text}");
        };
        met += u32::from(in_flight > 0);
        // That of the node includes its start.
        longest = longest.max(waited);
        ensure!(
            waited < WAIT_MAX,
            "{command}: a request waited {waited} hundredths of a second"
        );
    }
    host.run("end_load && check_files && umount /mnt && no_errors")?;
    host.run(&format!(
        "check_fs /dev/{device} && archipelago volume detach disk"
    ))?;
    println!(
        "{placement}: {KILLS} kills, {met} with requests in flight, a read waited {longest}0 ms at most"
    );
    ensure!(2 * met > KILLS, "most kills met no request in flight");
    Ok(())
}

#[test]
fn a_device_outlives_kills_fused() -> Result<()> {
    survives("fused", &["endpoint"])
}

#[test]
fn a_device_outlives_kills_split() -> Result<()> {
    survives("split", &["endpoint", "mapper", "blocker"])
}

/// Beside the kernel's loop device on a file of the same file system. An emulated processor: figures for people.
#[test]
fn the_rate_beside_a_loop_device_is_printed() -> Result<()> {
    let Some(host) = Host::boot("fused")? else {
        return Ok(());
    };
    let device = host.attach("disk", SIZE)?;
    host.run(
        "dd if=/dev/zero of=/node/file bs=1M count=256 conv=fsync 2>/dev/null && losetup --direct-io=on /dev/loop0 /node/file && \
         [ $(cat /sys/block/loop0/loop/dio) = 1 ]",
    )?;
    host.run(&format!(
        "dd if=/dev/zero of=/dev/{device} bs=1M oflag=direct 2>/dev/null; true"
    ))?;
    for pattern in ["randread", "randwrite"] {
        let mut rates = Vec::new();
        for target in ["loop0", &device] {
            let rate = host.run(&format!("rate_of /dev/{target} {pattern}"))?;
            rates.push(rate.parse::<f64>().with_context(|| rate.clone())?);
        }
        println!(
            "{pattern}, 4 KiB, depth 32: loop {:.0}, ublk {:.0} requests a second: {:.2}",
            rates[0],
            rates[1],
            rates[1] / rates[0]
        );
        ensure!(rates.iter().all(|rate| *rate > 0.0), "{rates:?}");
    }
    Ok(())
}

/// Does `kill` with requests in flight on `device`, which is one of the kernel's NBD client: they wait, for a bounded time.
fn kill_beneath_nbd(host: &Host, kill: &str, device: &str, role: &str) -> Result<()> {
    let text = host.run(&format!(
        "usleep 300000; {kill} {device} {role} || {{ show_node_log; false; }}"
    ))?;
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    let [in_flight, waited] = numbers.with_context(|| text.clone())?[..] else {
        anyhow::bail!("{kill}: {text}");
    };
    println!("{kill} {role}: {in_flight} requests in flight, a read waited {waited}0 ms");
    ensure!(waited < WAIT_MAX, "{kill} {role}: {text}");
    Ok(())
}

/// A device by the kernel's NBD client: it keeps its requests over deaths and a resize, and nothing of it is left behind.
#[test]
fn without_ublk_a_block_device_is_one_of_the_nbd_client() -> Result<()> {
    let Some(host) = Host::boot("fused")? else {
        return Ok(());
    };
    host.run("archipelago volume create disk --size 256M && rmmod ublk_drv")?;
    // Refused before anything is made, and the volume can be attached otherwise.
    host.refused(
        "archipelago volume attach disk --ublk",
        &[
            "no ublk devices",
            "modprobe ublk_drv",
            "--nbd",
            "archipelago mount",
        ],
    )?;
    let path = host.run("archipelago volume attach disk --block")?;
    let device = path.strip_prefix("/dev/").context("a path below /dev")?;
    ensure!(device.starts_with("nbd"), "{path}");
    for (file, expected) in [
        ("queue/write_cache", "write back"),
        ("queue/fua", "1"),
        ("queue/logical_block_size", "512"),
        ("ro", "0"),
    ] {
        let found = host.run(&format!("cat /sys/block/{device}/{file}"))?;
        ensure!(found == expected, "{file}: {found}");
    }
    host.run(&format!(
        "mkfs.ext4 -q -F {path} 64M && mount -t ext4 {path} /mnt && make_files 10 256"
    ))?;
    let detach = "archipelago volume detach disk";
    host.refused(detach, &["in use", "mounted"])?;
    host.run(&format!(
        "archipelago volume resize disk 320M && sectors_are {device} 655360"
    ))?;
    // Beyond the size that the kernel has agreed on when it was connected.
    host.run(&format!("start_load {path} 48m --offset=260m"))?;
    for kill in ["kill_beneath", "kill_beneath", "kill_node_beneath"] {
        kill_beneath_nbd(&host, kill, device, "endpoint")?;
    }
    // The same again finds what is there.
    let again = host.run("archipelago volume attach disk --block")?;
    ensure!(again == path, "{again}");
    host.run("end_load && check_files && umount /mnt && no_errors")?;
    let is_left = format!("sectors_are {device} 0 && [ ! -e /sys/block/{device}/pid ]");
    host.run(&format!("check_fs {path} && {detach} && {is_left}"))?;
    // A stop of the node takes it away, and a start makes it again.
    let path = host.run("archipelago volume attach disk --block")?;
    host.run(&format!("archipelago node stop && {is_left}"))?;
    host.run(&format!(
        "archipelago node start && await 10 sectors_are {device} 655360 && mount -t ext4 -o ro {path} /mnt && check_files && umount /mnt"
    ))?;
    // As an attach leaves it behind whose daemon dies in its midst.
    host.run(&format!(
        "kill -9 $(pid_of_daemon) && await 60 no_node && rm $(find /node/root -name attachments.json) && archipelago node start && {is_left}"
    ))?;
    host.run("archipelago volume snapshot disk frozen")?;
    let path = host.run("archipelago volume attach frozen --block")?;
    host.run(&format!("[ $(blockdev --getro {path}) = 1 ] && no_errors"))?;
    host.refused(&format!("dd if=/dev/zero of={path} count=1"), &["ermitted"])?;
    let socket = host.run("archipelago volume attach disk --nbd")?;
    ensure!(Path::new(&socket).is_absolute(), "{socket}");
    Ok(())
}

/// The same where each role has a process of its own: the death of any of them is a pause.
#[test]
fn a_device_of_the_nbd_client_outlives_kills_split() -> Result<()> {
    let Some(host) = Host::boot("split")? else {
        return Ok(());
    };
    host.run("archipelago volume create disk --size 256M && rmmod ublk_drv")?;
    let path = host.run("archipelago volume attach disk --block")?;
    let device = path.strip_prefix("/dev/").context("a path below /dev")?;
    ensure!(device.starts_with("nbd"), "{path}");
    host.run(&format!(
        "mkfs.ext4 -q -F {path} 64M && mount -t ext4 {path} /mnt && make_files 10 256"
    ))?;
    // Behind the file system.
    host.run(&format!("start_load {path} 64m --offset=80m"))?;
    for role in ["blocker", "mapper", "endpoint"] {
        kill_beneath_nbd(&host, "kill_beneath", device, role)?;
    }
    kill_beneath_nbd(&host, "kill_node_beneath", device, "endpoint")?;
    host.run("end_load && check_files && umount /mnt && no_errors")?;
    host.run(&format!(
        "check_fs {path} && archipelago volume detach disk && sectors_are {device} 0 && [ ! -e /sys/block/{device}/pid ]"
    ))?;
    Ok(())
}
