//! Processes of one's own on volumes, over the segment channel: a real node, and the documented example.

#[cfg(test)]
mod harness;

#[cfg(test)]
#[path = "../../../drivers/segment/examples/copy_out.rs"]
#[allow(dead_code, reason = "its `main` is the example's")]
mod example;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    use archipelago_api::client::Method;
    use archipelago_api::types::{Bulk, OpenVolume, ResizeVolume, SnapshotVolume, VolumeView};
    use archipelago_protocol::status::BlockState;
    use archipelago_protocol::{Access, Error, ErrorCode, Labels, Name};
    use archipelago_segment::{Request, VolumeClient, VolumeOptions};
    use nix::fcntl::{Flock, FlockArg};

    use super::example::copy_out;
    use crate::harness::{Node, PLACEMENTS, run, wait};

    /// Set in a process that [`holding_process`] starts: the node's root, and the volume to be written.
    const HOLD: &str = "ARCHIPELAGO_TEST_HOLDS";

    fn open(node: &Node, name: &str, access: Access) -> Result<VolumeClient, Error> {
        let opened = node.client().open(&name.parse().unwrap(), access)?;
        VolumeClient::connect(&opened.socket, opened.uid, VolumeOptions::default())
    }

    fn done(volume: &mut VolumeClient, request: Request) -> Result<(), ErrorCode> {
        volume.submit(1, request).unwrap();
        volume.wait().unwrap().result
    }

    fn write(volume: &mut VolumeClient, offset: u64, byte: u8, len: u32) -> Result<(), ErrorCode> {
        let mut buffer = volume.buffers().acquire().unwrap();
        buffer.write(0, &vec![byte; len as usize]);
        done(
            volume,
            Request::Write {
                offset,
                len,
                buffer,
                durable: false,
            },
        )
    }

    fn read(volume: &mut VolumeClient, offset: u64, len: u32) -> Result<Vec<u8>, ErrorCode> {
        let buffer = volume.buffers().acquire().unwrap();
        let request = Request::Read {
            offset,
            len,
            buffer,
        };
        volume.submit(1, request).unwrap();
        let finished = volume.wait().unwrap();
        finished.result?;
        let mut data = vec![0; len as usize];
        finished.buffer.unwrap().read(0, &mut data);
        Ok(data)
    }

    #[test]
    fn a_volume_that_its_process_keeps_is_not_taken_for_closed() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "8M"]);
            let client = node.client();
            let name: Name = "v".parse().unwrap();
            let mut request = OpenVolume {
                keep: true,
                ..OpenVolume::default()
            };
            let opened = client.open_as(&name, &request).unwrap();
            let path = opened.reservation.clone().unwrap();
            let file = File::open(&path).unwrap();
            let kept = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
            let connect = |opened: &Bulk| {
                VolumeClient::connect(&opened.socket, opened.uid, VolumeOptions::default())
            };
            // Its channel has ended, and it is not back: nobody settles its last session for it.
            drop(connect(&opened).unwrap());
            let said = node.refused(&["volume", "snapshot", "v", "s"], 5);
            assert!(said.contains("another process has it open"), "{said}");
            let shrink = ["volume", "resize", "v", "4M", "--force"];
            node.refused(&shrink, 5);
            let exported = node.path("exported");
            node.refused(&["image", "export", "v", exported.to_str().unwrap()], 5);

            let own = path.file_name().unwrap().to_str().unwrap();
            request.reservation = Some(own.to_owned());
            let again = connect(&client.open_as(&name, &request).unwrap()).unwrap();
            node.done(&["volume", "snapshot", "v", "s"]);
            again.close().unwrap();
            drop(kept);
            node.done(&["volume", "snapshot", "v", "t"]);
        }
    }

    #[test]
    fn a_program_writes_a_volume_snapshots_it_and_the_example_copies_both() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "8M"]);
            let mut volume = open(&node, "v", Access::Write).unwrap();
            write(&mut volume, 1 << 20, 7, 64 << 10).unwrap();
            done(&mut volume, Request::Flush).unwrap();

            // While it is open: a snapshot, and a larger size.
            let client = node.client();
            let name: Name = "s".parse().unwrap();
            let snapshot = SnapshotVolume {
                name: name.clone(),
                labels: Labels::default(),
            };
            let _made: VolumeView = client
                .call(Method::Post, "/v1/volumes/v/snapshot", &snapshot)
                .unwrap();
            write(&mut volume, 1 << 20, 8, 4096).unwrap();
            let end = Request::WriteZeroes {
                offset: 8 << 20,
                len: 512,
                keep_space: false,
                durable: false,
            };
            assert_eq!(done(&mut volume, end), Err(ErrorCode::Invalid));
            let larger = ResizeVolume {
                size: 16 << 20,
                force: false,
            };
            let _grown: VolumeView = client
                .call(Method::Post, "/v1/volumes/v/resize", &larger)
                .unwrap();
            write(&mut volume, (16 << 20) - 512, 9, 512).unwrap();
            for range in [
                Request::Discard {
                    offset: (1 << 20) + 4096,
                    len: 4096,
                },
                Request::WriteZeroes {
                    offset: (1 << 20) + 8192,
                    len: 512,
                    keep_space: true,
                    durable: false,
                },
            ] {
                done(&mut volume, range).unwrap();
            }
            // One writer; a snapshot of it has readers.
            let refused = open(&node, "v", Access::Write).unwrap_err();
            assert_eq!(refused.code, ErrorCode::InUse);
            assert!(
                refused.message.contains("another process has it open"),
                "{refused}"
            );
            let refused = open(&node, "s", Access::Write).unwrap_err();
            assert_eq!(refused.code, ErrorCode::ReadOnly);
            let mut readers = [(); 3].map(|()| open(&node, "s", Access::Read).unwrap());
            for reader in &mut readers {
                assert_eq!(read(reader, 1 << 20, 8192).unwrap(), [7; 8192]);
                assert_eq!(write(reader, 0, 1, 512), Err(ErrorCode::ReadOnly));
            }
            // Where it holds data: what was written and not discarded, in whole blocks.
            let (range, buffer) = (16 << 20, volume.buffers().acquire().unwrap());
            let status = Request::Status {
                offset: 0,
                range,
                buffer,
            };
            volume.submit(1, status).unwrap();
            let finished = volume.wait().unwrap();
            assert_eq!(finished.result, Ok(()));
            let runs = finished.buffer.unwrap().status(range).unwrap();
            let runs: Vec<_> = runs.iter().map(|run| (run.len, run.state)).collect();
            let begin = [
                (1 << 20, BlockState::Hole),
                (4096, BlockState::Data),
                (4096, BlockState::Hole),
            ];
            assert_eq!(runs[..3], begin);
            assert_eq!(runs.last(), Some(&(4096, BlockState::Data)));
            volume.close().unwrap();

            let copy = |name: &str| {
                let path = node.path("copy");
                let file = std::fs::File::create(&path).unwrap();
                copy_out(&client, &name.parse().unwrap(), &file).unwrap();
                std::fs::read(path).unwrap()
            };
            let mut expected = vec![0; 8 << 20];
            expected[1 << 20..(1 << 20) + (64 << 10)].fill(7);
            assert!(copy("s") == expected);
            expected.resize(16 << 20, 0);
            expected[1 << 20..(1 << 20) + 4096].fill(8);
            expected[(1 << 20) + 4096..(1 << 20) + 8704].fill(0);
            expected[(16 << 20) - 512..].fill(9);
            assert!(copy("v") == expected);
        }
    }

    /// Not a test: what the process of [`a_process_that_is_killed_leaves_nothing_behind`] does.
    #[test]
    #[ignore = "runs for ever: the process that `a_process_that_is_killed_leaves_nothing_behind` starts, and kills"]
    fn holding_process() {
        let Some(root) = std::env::var_os(HOLD) else {
            return;
        };
        let layout = archipelago_api::layout::Layout::new(Some(root.as_ref())).unwrap();
        let client = archipelago_api::client::Client::new(layout);
        let opened = client.open(&"v".parse().unwrap(), Access::Write).unwrap();
        let mut volume =
            VolumeClient::connect(&opened.socket, opened.uid, VolumeOptions::default()).unwrap();
        write(&mut volume, 0, 5, 4096).unwrap();
        println!("holds");
        // With requests in flight as long as it lives.
        loop {
            write(&mut volume, 4096, 6, 4096).unwrap();
        }
    }

    #[test]
    fn a_process_that_is_killed_leaves_nothing_behind() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "8M"]);
            node.done(&["volume", "create", "other", "--size", "8M"]);
            let mut other = open(&node, "other", Access::Write).unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "tests::holding_process",
                    "--ignored",
                    "--nocapture",
                ])
                .env(HOLD, node.root())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("holds")));
            assert_eq!(
                open(&node, "v", Access::Read).unwrap_err().code,
                ErrorCode::InUse
            );
            write(&mut other, 0, 1, 512).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            // At once: whoever comes waits until it is closed.
            let mut volume = open(&node, "v", Access::Write).unwrap();
            assert_eq!(read(&mut volume, 0, 4096).unwrap(), [5; 4096]);
            volume.close().unwrap();
            assert_eq!(read(&mut other, 0, 512).unwrap(), [1; 512]);
            other.close().unwrap();
            wait("the sockets of channels are gone", || {
                let names = std::fs::read_dir(node.path("run/volume")).unwrap();
                names.count() == 0
            });
            node.done(&["volume", "remove", "v"]);
        }
    }

    #[test]
    fn a_process_that_stalls_or_lies_harms_itself_only() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "8M"]);
            node.done(&["volume", "create", "w", "--size", "8M"]);
            // It opens and never comes: the volume is its own for 30 s, and nobody else notices.
            let absent: Bulk = node
                .client()
                .open(&"w".parse().unwrap(), Access::Read)
                .unwrap();
            // It fills its ring and never looks at an answer.
            let mut stalled = open(&node, "w", Access::Read).unwrap();
            while let Some(buffer) = stalled.buffers().acquire() {
                let request = Request::Read {
                    offset: 0,
                    len: 4096,
                    buffer,
                };
                stalled.submit(1, request).unwrap();
            }
            let mut volume = open(&node, "v", Access::Write).unwrap();
            for offset in [1, 100, u64::MAX - 511, 8 << 20] {
                let end = write(&mut volume, offset, 1, 512);
                assert_eq!(end, Err(ErrorCode::Invalid), "{offset}");
            }
            write(&mut volume, 0, 1, 512).unwrap();
            done(&mut volume, Request::Flush).unwrap();
            volume.close().unwrap();
            drop(stalled);
            // A process that speaks something else is cut off, and the volume closed with it or by the timeout.
            let mut liar = std::os::unix::net::UnixStream::connect(&absent.socket);
            if let Ok(liar) = &mut liar {
                let _refused = liar.read(&mut [0; 16]);
            }
            let output = run(&mut node.command(&["node", "status"]));
            assert!(output.status.success());
        }
    }

    #[test]
    fn the_death_of_the_data_process_is_reported_and_the_volume_opens_again() {
        for placement in PLACEMENTS {
            let node = Node::start(placement);
            node.done(&["volume", "create", "v", "--size", "8M"]);
            let mut volume = open(&node, "v", Access::Write).unwrap();
            write(&mut volume, 0, 3, 4096).unwrap();
            done(&mut volume, Request::Flush).unwrap();
            let status = node.status();
            let processes = status["processes"].as_array().unwrap();
            let has_endpoint = |process: &&serde_json::Value| {
                let roles = process["roles"].as_array().unwrap();
                roles.iter().any(|role| role == "endpoint")
            };
            let pid = processes.iter().find(has_endpoint).unwrap()["pid"].as_i64();
            let pid = nix::unistd::Pid::from_raw(pid.unwrap().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            // Whatever is asked now fails, and goes on failing.
            while !volume.is_gone() {
                match volume.submit(1, Request::Flush) {
                    Ok(()) => drop(volume.wait()),
                    Err(_gone) => drop(volume.next()),
                }
                volume.wake();
            }
            assert!(volume.submit(1, Request::Flush).is_err());
            drop(volume);
            wait("the volume is served again", || {
                let Ok(mut volume) = open(&node, "v", Access::Write) else {
                    return false;
                };
                assert_eq!(read(&mut volume, 0, 4096).unwrap(), [3; 4096]);
                volume.close().is_ok()
            });
        }
    }

    #[test]
    fn what_does_not_exist_is_not_opened() {
        let node = Node::start("fused");
        let error = open(&node, "nothing", Access::Read).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
    }
}
