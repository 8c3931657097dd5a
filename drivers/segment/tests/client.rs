//! The client of a volume at a real channel, whose other end is served by a thread of the test.

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use archipelago_doubles::memory_volumes::MemoryVolumes;
    use archipelago_protocol::volume::{OnFull, VolumeOp};
    use archipelago_protocol::{ErrorCode, Lineage};
    use archipelago_segment::{
        BULK_ROLE, BulkServer, BulkStep, Request, SubmitError, VolumeClient, VolumeOptions,
    };
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use xseg::Server;
    use xseg::shared::{Admission, Listener};

    const VOLUME_LEN: usize = 4 << 20;
    const DEADLINE: Duration = Duration::from_secs(30);
    const OPTIONS: VolumeOptions = VolumeOptions {
        buffers: 4,
        buffer_len: 8192,
    };

    /// An endpoint that serves one volume in memory.
    struct Endpoint {
        dir: tempfile::TempDir,
        volumes: MemoryVolumes,
        ends: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    }

    impl Endpoint {
        fn start(write: bool) -> Endpoint {
            let dir = tempfile::tempdir().unwrap();
            let volumes = MemoryVolumes::new(VOLUME_LEN);
            let ends = Arc::new(AtomicBool::new(false));
            let listener =
                Listener::bind(&dir.path().join("s"), Admission::own([BULK_ROLE])).unwrap();
            let (mut served, end) = (volumes.clone(), Arc::clone(&ends));
            let thread = std::thread::spawn(move || {
                serve(listener, &mut served, write, &end);
            });
            Endpoint {
                dir,
                volumes,
                ends,
                thread: Some(thread),
            }
        }

        fn socket(&self) -> PathBuf {
            self.dir.path().join("s")
        }

        fn client(&self) -> VolumeClient {
            VolumeClient::connect(&self.socket(), None, OPTIONS).unwrap()
        }

        /// Ends as a process that is killed does: the sockets are closed, and nothing is said.
        fn kill(&mut self) {
            self.ends.store(true, Ordering::SeqCst);
            self.thread.take().map(JoinHandle::join);
        }
    }

    impl Drop for Endpoint {
        fn drop(&mut self) {
            self.kill();
        }
    }

    fn serve(mut listener: Listener, volumes: &mut MemoryVolumes, write: bool, end: &AtomicBool) {
        let mut server = BulkServer::open(volumes, Lineage(1), write, OnFull::Report);
        while !end.load(Ordering::SeqCst) {
            // As the host does: a client waits in front of a volume that is still being opened.
            if server.is_waiting()
                && let Some(mut port) = listener.accept()
            {
                port.start();
                server.connect(volumes, Server::from(port));
            }
            if matches!(server.poll(volumes), BulkStep::Ended { .. }) {
                return;
            }
            let _rested = poll(&mut [], PollTimeout::from(1_u8));
        }
    }

    fn write(client: &mut VolumeClient, token: u64, offset: u64, byte: u8, len: usize) {
        let mut buffer = client.buffers().acquire().unwrap();
        buffer.write(0, &vec![byte; len]);
        let request = Request::Write {
            offset,
            len: u32::try_from(len).unwrap(),
            buffer,
            durable: false,
        };
        client.submit(token, request).unwrap();
    }

    fn read(client: &mut VolumeClient, offset: u64, len: usize) -> Vec<u8> {
        let buffer = client.buffers().acquire().unwrap();
        let request = Request::Read {
            offset,
            len: u32::try_from(len).unwrap(),
            buffer,
        };
        client.submit(9, request).unwrap();
        let finished = client.wait().unwrap();
        assert_eq!((finished.token, finished.result), (9, Ok(())));
        let mut data = vec![0; len];
        finished.buffer.unwrap().read(0, &mut data);
        data
    }

    #[test]
    fn several_requests_are_in_flight_and_each_is_given_back_once() {
        let endpoint = Endpoint::start(true);
        let mut client = endpoint.client();
        endpoint.volumes.state().hold = true;
        for number in 0..4_u8 {
            write(
                &mut client,
                number.into(),
                8192 * u64::from(number),
                number + 1,
                8192,
            );
        }
        assert!(client.buffers().acquire().is_none(), "all are in flight");
        assert_eq!(client.in_flight(), 4);
        await_held(&endpoint, 4);
        endpoint.volumes.state().hold = false;
        // The last first.
        for index in [3, 2, 1, 0] {
            endpoint.volumes.state().release(index);
        }
        let order: Vec<u64> = (0..4).map(|_| client.wait().unwrap().token).collect();
        assert_eq!(order, [3, 2, 1, 0]);
        assert!(client.wait().is_none());
        assert_eq!(read(&mut client, 8192, 8192), [2; 8192]);

        let bare = [
            Request::Flush,
            Request::Discard {
                offset: 0,
                len: 8192,
            },
            Request::WriteZeroes {
                offset: 8192,
                len: 512,
                keep_space: true,
                durable: false,
            },
        ];
        for (token, request) in (20..).zip(bare) {
            client.submit(token, request).unwrap();
            let finished = client.wait().unwrap();
            assert_eq!((finished.token, finished.result), (token, Ok(())));
        }
        let asked: Vec<VolumeOp> = endpoint.volumes.state().journal[5..]
            .iter()
            .map(|asked| asked.op)
            .collect();
        let zeroes = VolumeOp::WriteZeroes {
            unmap: false,
            durable: false,
        };
        assert_eq!(asked, [VolumeOp::Flush, VolumeOp::Discard, zeroes]);
        assert_eq!(read(&mut client, 0, 8192), [0; 8192]);
        client.close().unwrap();
        assert_eq!(endpoint.volumes.state().closes, 1);
    }

    /// Waits until the volume holds `count` requests back.
    fn await_held(endpoint: &Endpoint, count: usize) {
        for _ in 0..DEADLINE.as_millis() {
            if endpoint.volumes.state().held.len() == count {
                return;
            }
            let _rested = poll(&mut [], PollTimeout::from(1_u8));
        }
        panic!("waited for {count} requests");
    }

    #[test]
    fn one_descriptor_tells_of_answers_and_of_the_endpoints_end() {
        let mut endpoint = Endpoint::start(true);
        let mut client = endpoint.client();
        let readable = |client: &VolumeClient, timeout: PollTimeout| {
            let mut descriptors = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
            poll(&mut descriptors, timeout).unwrap() == 1
        };
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        endpoint.volumes.state().hold = true;
        write(&mut client, 1, 0, 1, 512);
        await_held(&endpoint, 1);
        assert!(client.prepare_sleep());
        assert!(!readable(&client, PollTimeout::from(50_u8)));
        endpoint.volumes.state().release(0);
        assert!(readable(&client, timeout));
        client.wake();
        assert_eq!(client.next().unwrap().token, 1);

        write(&mut client, 2, 0, 1, 512);
        await_held(&endpoint, 1);
        assert!(client.prepare_sleep());
        endpoint.kill();
        assert!(readable(&client, timeout));
        client.wake();
        let lost = client.next().unwrap();
        assert_eq!((lost.token, lost.result), (2, Err(ErrorCode::Unavailable)));
        assert!(lost.buffer.is_some() && client.next().is_none() && client.is_gone());
        let refused = client.submit(3, Request::Flush);
        assert!(matches!(refused, Err(SubmitError::Gone(Request::Flush))));
        assert_eq!(client.close().unwrap_err().code, ErrorCode::Unavailable);
    }

    #[test]
    fn more_requests_than_may_be_in_flight_come_back() {
        let endpoint = Endpoint::start(true);
        let mut client = endpoint.client();
        endpoint.volumes.state().hold = true;
        let mut accepted = 0;
        let refused = loop {
            match client.submit(accepted, Request::Flush) {
                Ok(()) => accepted += 1,
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, SubmitError::Full(Request::Flush)));
        assert!(accepted >= OPTIONS.buffers as u64 && accepted == client.in_flight() as u64);
        await_held(&endpoint, client.in_flight());
        for _ in 0..accepted {
            endpoint.volumes.state().release(0);
        }
        while client.wait().is_some() {}
        client.close().unwrap();
    }

    #[test]
    fn a_failed_flush_that_was_answered_before_a_death_has_failed() {
        let mut endpoint = Endpoint::start(true);
        let mut client = endpoint.client();
        endpoint.volumes.state().hold = true;
        client.submit(1, Request::Flush).unwrap();
        while endpoint.volumes.state().held.is_empty() {
            let _rested = poll(&mut [], PollTimeout::from(1_u8));
        }
        write(&mut client, 2, 0, 1, 512);
        assert!(client.prepare_sleep(), "nothing is answered");
        endpoint.volumes.state().fail = Some(ErrorCode::SyncFailed);
        endpoint.volumes.state().release(0);
        let mut descriptors = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut descriptors, PollTimeout::from(30_000_u16)), Ok(1));
        endpoint.kill();
        // Sees the death before the answer.
        client.wake();
        for (token, result) in [(1, ErrorCode::SyncFailed), (2, ErrorCode::Unavailable)] {
            let finished = client.wait().unwrap();
            assert_eq!((finished.token, finished.result), (token, Err(result)));
        }
        assert!(client.wait().is_none() && client.is_gone());
    }

    #[test]
    fn a_reader_changes_nothing_and_a_bad_range_is_refused() {
        let endpoint = Endpoint::start(false);
        let mut client = endpoint.client();
        let zeroes = Request::WriteZeroes {
            offset: 0,
            len: 512,
            keep_space: false,
            durable: false,
        };
        for request in [
            Request::Discard {
                offset: 0,
                len: 512,
            },
            zeroes,
        ] {
            client.submit(1, request).unwrap();
            assert_eq!(client.wait().unwrap().result, Err(ErrorCode::ReadOnly));
        }
        write(&mut client, 1, 0, 1, 512);
        assert_eq!(client.wait().unwrap().result, Err(ErrorCode::ReadOnly));
        assert!(endpoint.volumes.state().journal.is_empty());
        assert_eq!(read(&mut client, 0, 512), [0; 512]);
    }

    #[test]
    fn nobody_at_the_socket_is_reported() {
        let error = VolumeClient::connect(Path::new("/nonexistent/s"), None, OPTIONS);
        assert_eq!(error.unwrap_err().code, ErrorCode::Unavailable);
    }
}
