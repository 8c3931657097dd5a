//! The same cases over every way into a volume.

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::{Context, Result, ensure};
    use archipelago_bench::waiting::now;
    use archipelago_crash_tests::node::Node;
    use archipelago_endpoint_tests::disk::{Durable, LEN_MAX, Space};
    use archipelago_endpoint_tests::fsx::{Plan, noise, run};
    use archipelago_endpoint_tests::{Attached, Disk, Way};
    use archipelago_protocol::Access;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 9 * MIB;

    /// Runs `case` on a fresh volume of `size` bytes for every way, on one node.
    fn each(
        placement: &str,
        size: u64,
        case: impl Fn(&Node, Way, &str) -> Result<()>,
    ) -> Result<()> {
        let node = Node::start(placement)?;
        for way in Way::here() {
            let name = format!("{way:?}").to_lowercase();
            node.call(&["volume", "create", &name, "--size", &size.to_string()])?;
            let began = now();
            case(&node, way, &name).with_context(|| format!("{way:?}, {placement}"))?;
            eprintln!("{way:?}, {placement}: {:?}", now() - began);
        }
        Ok(())
    }

    fn write_access<'a>(node: &'a Node, way: Way, name: &str) -> Result<Attached<'a>> {
        Attached::new(node, way, name, Access::Write, &[])
    }

    fn check(disk: &mut dyn Disk, offset: u64, expected: &[u8]) -> Result<()> {
        let mut found = vec![0xa5; expected.len()];
        disk.read(offset, &mut found)?;
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        ensure!(differs.is_none(), "at {offset}: byte {differs:?} differs");
        Ok(())
    }

    #[test]
    fn sizes_and_alignments_from_a_sector_on_up_to_the_last_one() -> Result<()> {
        each("fused", SIZE, |node, way, name| {
            let attached = write_access(node, way, name)?;
            let mut disk = attached.connect()?;
            let mut model = vec![0; usize::try_from(SIZE)?];
            let lens = [512, 1024, 1536, 4096, 4608, 65_536, 131_072 - 512, LEN_MAX];
            // Around blocks, objects of 4 MiB, and the end.
            let places = [0, 512, 3584, 4096, 4 * MIB - 512, 4 * MIB, 8 * MIB - 1536];
            for (round, len) in lens.into_iter().enumerate() {
                for (seed, place) in places.into_iter().chain([SIZE - len as u64]).enumerate() {
                    let data = noise((round * 100 + seed) as u64, len);
                    disk.write(place, &data, Durable::Later)?;
                    model[usize::try_from(place)?..][..len].copy_from_slice(&data);
                    check(&mut *disk, place, &data)?;
                }
            }
            for offset in (0..SIZE).step_by(LEN_MAX) {
                let len = LEN_MAX.min(usize::try_from(SIZE - offset)?);
                check(
                    &mut *disk,
                    offset,
                    &model[usize::try_from(offset)?..][..len],
                )?;
            }
            let beyond = disk.write(SIZE, &[1; 512], Durable::Later);
            ensure!(
                beyond.is_err() || way == Way::Block,
                "written beyond the end"
            );
            drop(disk);
            attached.detach()
        })
    }

    #[test]
    fn what_was_flushed_or_written_durably_is_there_after_all_processes_died() -> Result<()> {
        for placement in ["fused", "split"] {
            each(placement, SIZE, |node, way, name| {
                let attached = write_access(node, way, name)?;
                let mut disk = attached.connect()?;
                let (flushed, durable) = (noise(1, 70 << 10), noise(2, 4096));
                disk.write(MIB, &flushed, Durable::Later)?;
                disk.zero(MIB + 8192, 4096, Space::Released)?;
                disk.flush()?;
                disk.write(5 * MIB - 2048, &durable, Durable::Now)?;
                disk.write(7 * MIB, &[9; 4096], Durable::Later)?;
                Node::kill(node.daemon()?)?;
                node.restart()?;
                let mut expected = flushed;
                expected[8192..12288].fill(0);
                check(&mut *disk, MIB, &expected)?;
                check(&mut *disk, 5 * MIB - 2048, &durable)?;
                // Served on, by the same client.
                disk.write(0, &[3; 512], Durable::Now)?;
                check(&mut *disk, 0, &[3; 512])?;
                drop(disk);
                attached.detach()
            })?;
        }
        Ok(())
    }

    #[test]
    fn zeros_and_discards_read_as_zeros_and_touch_nothing_else() -> Result<()> {
        each("fused", SIZE, |node, way, name| {
            let attached = write_access(node, way, name)?;
            let mut disk = attached.connect()?;
            let base = 4 * MIB - 64 * 1024;
            let mut model = noise(7, 128 << 10);
            disk.write(base, &model, Durable::Later)?;
            let ranges: [(u64, u64); 6] = [
                (0, 512),
                (512 * 3, 512 * 9),
                (8192, 4096),
                (40_960, 512),
                (61_440, 12_288),
                (100_352, 30_208),
            ];
            for (number, (at, len)) in ranges.into_iter().enumerate() {
                match number % 3 {
                    0 => disk.zero(base + at, len, Space::Kept)?,
                    1 => disk.zero(base + at, len, Space::Released)?,
                    _ => disk.discard(base + at, len)?,
                }
                model[usize::try_from(at)?..][..usize::try_from(len)?].fill(0);
                check(&mut *disk, base, &model)?;
            }
            // Zeros are written over as anything else.
            disk.write(base + 8192, &[1; 1024], Durable::Later)?;
            model[8192..9216].fill(1);
            check(&mut *disk, base, &model)?;
            drop(disk);
            attached.detach()
        })
    }

    #[test]
    fn a_read_only_way_reads_and_refuses_everything_else() -> Result<()> {
        each("fused", SIZE, |node, way, name| {
            let writer = write_access(node, Way::Segment, name)?;
            let mut disk = writer.connect()?;
            disk.write(0, &noise(4, 4096), Durable::Now)?;
            drop(disk);
            let attached = Attached::new(node, way, name, Access::Read, &[])?;
            let mut disk = attached.connect()?;
            check(&mut *disk, 0, &noise(4, 4096))?;
            let refused = [
                disk.write(0, &[1; 512], Durable::Later),
                disk.write(4096, &[1; 512], Durable::Now),
                disk.zero(0, 512, Space::Kept),
                disk.zero(0, 4096, Space::Released),
                disk.discard(0, 4096),
            ];
            ensure!(refused.iter().all(Result::is_err), "{refused:?}");
            check(&mut *disk, 0, &noise(4, 4096))?;
            drop(disk);
            attached.detach()
        })
    }

    #[test]
    fn a_larger_volume_is_seen_and_written_to_its_new_end() -> Result<()> {
        each("fused", SIZE, |node, way, name| {
            let attached = write_access(node, way, name)?;
            let mut disk = attached.connect()?;
            ensure!(disk.size()? == SIZE);
            disk.write(SIZE - 512, &[1; 512], Durable::Later)?;
            node.call(&["volume", "resize", name, &(SIZE + MIB).to_string()])?;
            ensure!(disk.size()? == SIZE + MIB);
            disk.write(SIZE + MIB - 512, &[2; 512], Durable::Now)?;
            check(&mut *disk, SIZE + MIB - 512, &[2; 512])?;
            check(&mut *disk, SIZE - 512, &[1; 512])?;
            check(&mut *disk, SIZE, &[0; 4096])?;
            drop(disk);
            attached.detach()
        })
    }

    #[test]
    fn a_detach_under_load_is_refused_and_harms_nobody() -> Result<()> {
        each("fused", SIZE, |node, way, name| {
            let attached = write_access(node, way, name)?;
            let mut disk = attached.connect()?;
            let ends = AtomicBool::new(false);
            let written = std::thread::scope(|scope| {
                let load = scope.spawn(|| {
                    let mut round = 0;
                    // Relaxed: only a wish.
                    while !ends.load(Ordering::Relaxed) {
                        round += 1;
                        disk.write(round % 64 * 8192, &noise(round, 8192), Durable::Later)?;
                        check(&mut *disk, round % 64 * 8192, &noise(round, 8192))?;
                    }
                    anyhow::Ok((disk, round))
                });
                let refused = node.output(&["volume", "detach", name]);
                ends.store(true, Ordering::Relaxed);
                let load = load.join().expect("the load");
                let code = refused?.status.code();
                // What is only open is not attached.
                let expected = if way == Way::Segment { 3 } else { 5 };
                ensure!(code == Some(expected), "{code:?}");
                load
            });
            let (disk, round) = written?;
            drop(disk);
            attached.detach()?;
            if let Some(path) = attached.path() {
                ensure!(!path.exists(), "{} is left", path.display());
            }
            let again = write_access(node, way, name)?;
            let mut disk = again.connect()?;
            check(&mut *disk, round % 64 * 8192, &noise(round, 8192))?;
            drop(disk);
            again.detach()
        })
    }

    #[test]
    fn clients_go_on_after_the_death_of_each_process() -> Result<()> {
        for placement in ["fused", "split"] {
            each(placement, SIZE, |node, way, name| {
                let attached = write_access(node, way, name)?;
                let mut disk = attached.connect()?;
                // In the fused placement one process has all three, and one that dies again and again is started ever later.
                let roles = match placement {
                    "fused" => &["endpoint"][..],
                    _ => &["endpoint", "mapper", "blocker"],
                };
                for (round, role) in (0_u64..).zip(roles) {
                    let data = noise(round, 16 << 10);
                    disk.write(round * MIB, &data, Durable::Later)?;
                    Node::kill(node.process_of(role)?)?;
                    // What was answered is there, flushed or not: only a process died.
                    check(&mut *disk, round * MIB, &data)?;
                    disk.write(round * MIB + 65_536, &data, Durable::Later)?;
                    check(&mut *disk, round * MIB + 65_536, &data)?;
                }
                drop(disk);
                attached.detach()
            })?;
        }
        Ok(())
    }

    /// One way, so that they run beside each other.
    fn random(way: Way) -> Result<()> {
        if !Way::here().contains(&way) {
            return Ok(());
        }
        let node = Node::start("fused")?;
        let size = 3 * MIB;
        node.call(&["volume", "create", "v", "--size", &size.to_string()])?;
        let attached = write_access(&node, way, "v")?;
        let mut disk = attached.connect()?;
        let plan = Plan::from_environment();
        eprintln!("{way:?}: {plan}");
        let began = now();
        let model = run(&mut *disk, size, plan)?;
        eprintln!("{way:?}: {:?}", now() - began);
        drop(disk);
        attached.detach()?;
        // Another way, after everything of this one has gone: the node has what the client had.
        let raw = node.root().join("raw");
        node.call(&["image", "export", "v", raw.to_str().context("UTF-8")?])?;
        ensure!(
            std::fs::read(raw)? == model,
            "the volume is not as its client had it"
        );
        Ok(())
    }

    #[test]
    fn random_vhost_user() -> Result<()> {
        random(Way::VhostUser)
    }

    #[test]
    fn random_nbd() -> Result<()> {
        random(Way::Nbd)
    }

    #[test]
    fn random_segment() -> Result<()> {
        random(Way::Segment)
    }

    #[test]
    fn random_file() -> Result<()> {
        random(Way::File)
    }

    #[test]
    fn random_block() -> Result<()> {
        random(Way::Block)
    }
}
