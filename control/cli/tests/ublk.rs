//! Block devices of this host, where its kernel has none: refused with other ways, before anything is made. Where it has them,
//! `tests/vm` tries them in guests.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::harness::{Node, PLACEMENTS, skip};

    /// `PF_MEMALLOC_NOIO` of `linux/sched.h`: the kernel gets memory for it without writing back.
    const NOIO: u64 = 0x0008_0000;

    /// Flags of the process `pid`, as the kernel shows them.
    fn flags(pid: u64) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name, which may hold anything, ends with the last bracket; the flags are the seventh word behind it.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.split_whitespace().nth(6).unwrap().parse().unwrap()
    }

    /// Whether this process has `CAP_SYS_RESOURCE`, which many a container's root has not.
    fn may_say_so() -> bool {
        const CAP_SYS_RESOURCE: u32 = 24;
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
        mask & 1 << CAP_SYS_RESOURCE != 0
    }

    #[test]
    fn a_kernel_without_ublk_is_said_with_other_ways_and_nothing_is_left() {
        if Path::new("/dev/ublk-control").exists() {
            return skip("this kernel has ublk");
        }
        let node = Node::start("fused");
        node.done(&["volume", "create", "disk", "--size", "1M"]);
        let text = node.refused(&["volume", "attach", "disk", "--ublk"], 1);
        for word in [
            "this kernel has no ublk devices",
            "modprobe ublk_drv",
            "volume attach NAME --nbd",
            "archipelago mount DIR",
        ] {
            assert!(text.contains(word), "{text}");
        }
        let status = node.status();
        assert_eq!(status["attachments"].as_array().unwrap().len(), 0);
        // The volume is as free as before.
        node.done(&["volume", "attach", "disk", "--nbd"]);
        node.refused(&["volume", "attach", "disk", "--ublk"], 1);
        node.done(&["volume", "detach", "disk"]);
    }

    #[test]
    fn queues_are_of_vhost_user_and_one_way_is_asked_for() {
        let node = Node::new();
        for arguments in [
            ["volume", "attach", "disk", "--ublk", "--queues=2"],
            ["volume", "attach", "disk", "--ublk", "--nbd"],
            ["volume", "attach", "disk", "--ublk", "--vhost-user"],
        ] {
            let text = node.refused(&arguments, 2);
            assert!(text.contains("cannot be used with"), "{text}");
        }
    }

    /// The write-back of this host may wait for each of them.
    #[test]
    fn the_processes_of_a_node_serve_write_back_and_so_do_not_wait_for_it() {
        if !may_say_so() {
            // No failure with `$CI` set: `tests/vm` looks at the same in a guest, whose root lacks nothing.
            println!("skipped: PR_SET_IO_FLUSHER needs CAP_SYS_RESOURCE");
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            let status = node.status();
            let processes = status["processes"].as_array().unwrap();
            for process in processes {
                let pid = process["pid"].as_u64().unwrap();
                assert_eq!(flags(pid) & NOIO, NOIO, "{placement}: {process}");
            }
            assert!(!processes.is_empty());
            // Which starts them again.
            let daemon = u64::try_from(node.daemon().unwrap()).unwrap();
            assert_eq!(flags(daemon) & NOIO, NOIO, "{placement}: the daemon");
        }
        assert_eq!(flags(std::process::id().into()) & NOIO, 0, "not this one");
    }
}
