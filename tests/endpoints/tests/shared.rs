//! Several endpoints on one volume that does not change, and none beside a writer.

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result, ensure};
    use archipelago_crash_tests::node::Node;
    use archipelago_endpoint_tests::disk::Durable;
    use archipelago_endpoint_tests::fsx::noise;
    use archipelago_endpoint_tests::{Attached, Disk, Way};
    use archipelago_protocol::Access;
    use serde_json::Value;

    const PLACEMENTS: [&str; 2] = ["fused", "split"];
    const MIB: usize = 1 << 20;

    fn refused(node: &Node, arguments: &[&str], code: i32, says: &str) -> Result<()> {
        let output = node.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code) && said.contains(says),
            "{arguments:?}: {}: {said}",
            output.status
        );
        Ok(())
    }

    /// Id, kind and state of what is attached of `name`.
    fn attachments(node: &Node, name: &str) -> Result<Vec<(u64, String, String)>> {
        let list: Value =
            serde_json::from_str(&node.call(&["--json", "volume", "attachments", name])?)?;
        let list = list["attachments"].as_array().context("a list")?.iter();
        list.map(|one| {
            ensure!(one["read_only"] == true, "{one}");
            let text = |key: &str| Some(one[key].as_str()?.to_owned());
            let id = one["id"].as_u64().context("a number")?;
            let (kind, state) = text("kind").zip(text("state")).context("words")?;
            Ok((id, kind, state))
        })
        .collect()
    }

    fn check_all(disks: &mut [Box<dyn Disk>], content: &[u8]) -> Result<()> {
        let mut found = vec![0; 256 << 10];
        for offset in (0..content.len()).step_by(found.len()) {
            for disk in &mut *disks {
                disk.read(offset as u64, &mut found)
                    .with_context(|| format!("{disk:?}"))?;
                ensure!(
                    found == content[offset..offset + found.len()],
                    "{disk:?} at {offset}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_frozen_is_read_over_every_way_at_once_and_again_after_kills() -> Result<()> {
        for placement in PLACEMENTS {
            let node = Node::start(placement)?;
            let content = noise(1, 2 * MIB);
            let raw = node.root().join("raw");
            std::fs::write(&raw, &content)?;
            let raw = raw.to_str().context("UTF-8")?;
            node.call(&["image", "import", raw, "image"])?;
            let here = Way::here();
            let ways = [
                Way::VhostUser,
                Way::VhostUser,
                Way::Nbd,
                Way::Nbd,
                Way::File,
                Way::File,
                Way::Block,
                Way::Block,
                Way::Segment,
                Way::Segment,
            ]
            .into_iter()
            .filter(|way| here.contains(way))
            .collect::<Vec<_>>();
            let attached = ways
                .iter()
                .map(|way| Attached::new(&node, *way, "image", Access::Read, &["--another"]))
                .collect::<Result<Vec<_>>>()?;
            let ids: Vec<u64> = attached.iter().filter_map(Attached::id).collect();
            // The same again is the same; of several that match, the first.
            let again = Attached::new(&node, Way::Nbd, "image", Access::Read, &[])?;
            ensure!(again.id() == Some(ids[2]), "{again:?}");
            let states = |state: &str| -> Vec<(u64, String, String)> {
                let kinds = ways.iter().filter_map(|way| way.kind());
                let of_one = |(id, kind): (&u64, &str)| {
                    // A file and a device do not know who has them open.
                    let knows = ["vhost-user", "nbd"].contains(&kind);
                    let state = if knows { state } else { "served" };
                    (*id, kind.to_owned(), state.to_owned())
                };
                ids.iter().zip(kinds).map(of_one).collect()
            };
            ensure!(attachments(&node, "image")? == states("idle"));

            let connect = || {
                let disks = attached.iter().map(Attached::connect);
                disks.collect::<Result<Vec<_>>>()
            };
            let mut disks = connect()?;
            // NBD clients share their export.
            disks.push(attached[2].connect()?);
            check_all(&mut disks, &content)?;
            ensure!(attachments(&node, "image")? == states("connected"));
            for disk in &mut disks {
                ensure!(
                    disk.write(0, &[1; 512], Durable::Later).is_err(),
                    "{disk:?}"
                );
            }
            let copy = node.root().join("copy");
            let copy = copy.to_str().context("UTF-8")?;
            node.call(&["image", "export", "image", copy])?;
            ensure!(std::fs::read(copy)? == content, "exported beside them");

            // Each role dies once under them; then the daemon, with all.
            for role in ["endpoint", "mapper", "blocker"] {
                Node::kill(node.process_of(role)?)?;
                check_all(&mut disks, &content)?;
            }
            Node::kill(node.daemon()?)?;
            node.restart()?;
            check_all(&mut disks, &content)?;
            ensure!(attachments(&node, "image")? == states("connected"));

            // One ends, and the others go on.
            refused(
                &node,
                &["volume", "detach", "image"],
                2,
                &format!("attached {} times", ids.len()),
            )?;
            refused(
                &node,
                &["volume", "detach", "image", "--nbd"],
                2,
                "attached 2 times",
            )?;
            let second = ids[1].to_string();
            refused(
                &node,
                &["volume", "detach", "image", "--id", &second],
                5,
                "in use",
            )?;
            drop(disks.remove(1));
            attached[1].detach()?;
            ensure!(!attached[1].path().context("a path")?.exists());
            refused(
                &node,
                &["volume", "detach", "image", "--id", &second],
                3,
                "not attached",
            )?;
            check_all(&mut disks, &content)?;
            refused(&node, &["volume", "remove", "image"], 5, "attached")?;
            drop(disks);
            for (index, one) in attached.iter().enumerate() {
                if index != 1 {
                    one.detach()?;
                }
            }
            node.call(&["volume", "remove", "image"])?;
        }
        Ok(())
    }

    #[test]
    fn a_volume_has_one_writer_and_no_reader_beside_it() -> Result<()> {
        for placement in PLACEMENTS {
            let node = Node::start(placement)?;
            node.call(&["volume", "create", "v", "--size", "1M"])?;
            let writer = Attached::new(&node, Way::Nbd, "v", Access::Write, &[])?;
            let attach = |options: &[&'static str]| [&["volume", "attach", "v"], options].concat();
            let beside = [
                (
                    attach(&["--nbd", "--read-only"]),
                    "would change while it is read",
                ),
                (
                    attach(&["--vhost-user", "--read-only", "--another"]),
                    "volume snapshot v",
                ),
                (
                    attach(&["--vhost-user"]),
                    "attached already, by nbd, read-write",
                ),
                (attach(&["--nbd", "--another"]), "attached already"),
            ];
            for (arguments, says) in &beside {
                refused(&node, arguments, 5, says)?;
            }
            let mut client = writer.connect()?;
            client.flush()?;
            let opened = Attached::new(&node, Way::Segment, "v", Access::Read, &[])?;
            let error = opened.connect().err().context("a reader")?;
            ensure!(format!("{error:?}").contains("os error 16"), "{error:?}");
            drop(client);
            writer.detach()?;

            // Readers share it while nobody writes; a writer has to wait for the last of them.
            let readers = [Way::Nbd, Way::VhostUser]
                .map(|way| Attached::new(&node, way, "v", Access::Read, &[]));
            let readers = readers.into_iter().collect::<Result<Vec<_>>>()?;
            let mut disks = readers
                .iter()
                .map(Attached::connect)
                .collect::<Result<Vec<_>>>()?;
            check_all(&mut disks, &[0; MIB])?;
            refused(&node, &attach(&["--nbd", "--another"]), 5, "read-only")?;
            let writer = Attached::new(&node, Way::Segment, "v", Access::Write, &[])?;
            ensure!(writer.connect().is_err(), "a writer under readers");
            drop(disks);
            for reader in &readers {
                refused(&node, &["volume", "remove", "v"], 5, "attached")?;
                reader.detach()?;
            }
            let mut writer = writer.connect()?;
            writer.write(0, &[7; 512], Durable::Now)?;
        }
        Ok(())
    }
}
