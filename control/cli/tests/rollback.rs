//! `volume rollback`.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use crate::harness::clients::{has_clients, qemu_io};
    use crate::harness::{Node, PLACEMENTS};

    /// Has a client carry out `commands` on the volume `v`, which is attached meanwhile.
    fn on_v(node: &Node, commands: &[&str]) {
        let socket = node.done(&["volume", "attach", "v", "--nbd"]);
        let export = format!("nbd+unix:///v?socket={}", socket.trim());
        qemu_io(&[], commands, &export);
        node.done(&["volume", "detach", "v"]);
    }

    #[test]
    fn a_volume_goes_back_to_its_snapshots_and_keeps_name_labels_and_policy() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&[
                "volume",
                "create",
                "v",
                "--size",
                "1G",
                "--on-full",
                "report",
                "--label",
                "tier=gold",
            ]);
            on_v(&node, &["write -P 1 0 4M", "flush"]);
            node.done(&["volume", "snapshot", "v", "monday"]);
            node.done(&["volume", "resize", "v", "2G"]);
            on_v(&node, &["write -P 2 0 1M", "write -P 2 1G 1M", "flush"]);
            node.done(&["volume", "snapshot", "v", "tuesday"]);
            on_v(&node, &["write -P 3 0 4M", "flush"]);

            node.done(&["volume", "attach", "v", "--nbd"]);
            node.refused_as(&["volume", "rollback", "v", "monday"], 5, "in-use");
            node.done(&["volume", "detach", "v"]);
            node.refused_as(&["volume", "rollback", "monday", "tuesday"], 2, "invalid");
            node.done(&["volume", "clone", "monday", "other"]);
            node.done(&["volume", "snapshot", "other", "others"]);
            node.refused_as(&["volume", "rollback", "v", "others"], 2, "invalid");
            on_v(&node, &["read -P 3 0 4M"]);

            node.done(&["volume", "rollback", "v", "monday"]);
            on_v(&node, &["read -P 1 0 4M", "read -P 0 4M 1020M"]);
            let info = node.done(&["volume", "info", "v"]);
            for kept in ["1073741824", "report", "tier=gold", "monday"] {
                assert!(info.contains(kept), "{kept}: {info}");
            }
            // What was written since is no obstacle to another way.
            on_v(&node, &["write -P 4 0 4M", "flush"]);
            node.done(&["volume", "rollback", "v", "tuesday"]);
            on_v(
                &node,
                &["read -P 2 0 1M", "read -P 1 1M 3M", "read -P 2 1G 1M"],
            );
            for snapshot in ["monday", "tuesday"] {
                node.done(&["volume", "remove", snapshot]);
            }
            on_v(
                &node,
                &["read -P 2 0 1M", "read -P 1 1M 3M", "read -P 2 1G 1M"],
            );
            node.assert_clean();
        }
    }
}
