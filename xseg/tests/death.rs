//! Real deaths: a server process killed with SIGKILL under load, again and again. No request is lost, none is answered twice.
//!
//! The server is this test binary again, started as one by an environment variable.
#![cfg(not(loom))]

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::fd::BorrowedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use xseg::shared::{Admission, ConnectOptions, Listener, OnServerDeath, SharedClient};
    use xseg::{ClientPort, Completion, Region, RegionId, ServerPort, Submission};

    const SOCKET: &str = "XSEG_TEST_SOCKET";
    const KILLS: u64 = 40;
    const RING: usize = 32;
    /// Requests that the server keeps unanswered while others come.
    const HELD_BACK: usize = 8;
    const REGION: RegionId = RegionId(5);

    fn wait(fds: &[BorrowedFd<'_>], timeout_ms: u16) {
        let mut fds: Vec<PollFd<'_>> = fds
            .iter()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }

    fn spawn_server(socket: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::the_server_process", "--nocapture"])
            .env(SOCKET, socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    const SIGBUS: &str = "XSEG_TEST_SIGBUS";

    /// Not a test: a process that gets a SIGBUS which is no truncation, when the environment says so.
    #[test]
    fn the_process_with_a_bus_error() {
        if std::env::var_os(SIGBUS).is_some() {
            xseg::guard_against_truncation().unwrap();
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).unwrap();
        }
    }

    #[test]
    fn a_bus_error_that_is_no_truncation_still_ends_the_process() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::the_process_with_a_bus_error"])
            .env(SIGBUS, "1")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(nix::libc::SIGBUS));
    }

    fn check(waiting: &mut HashSet<u64>, (cookie, completion): (u64, Completion)) {
        assert!(
            waiting.remove(&cookie),
            "request {cookie} was answered twice"
        );
        assert_eq!(completion.values[0], cookie);
    }

    /// Not a test: the server, when the environment says so. Writes each request's number into guest memory and answers.
    #[test]
    fn the_server_process() {
        let Some(path) = std::env::var_os(SOCKET) else {
            return;
        };
        let mut listener = Listener::bind(Path::new(&path), Admission::own([1])).unwrap();
        let mut server = loop {
            wait(&[listener.fd()], 1000);
            if let Some(server) = listener.accept() {
                break server;
            }
        };
        server.start();
        let mut held = Vec::new();
        let mut slept = false;
        while !server.is_closed() {
            let before = held.len();
            held.extend(std::iter::from_fn(|| server.accept()));
            let fresh = held.len() > before;
            let keep = if slept && !fresh { 0 } else { HELD_BACK };
            slept = false;
            // Some are answered late and in another order, so that death finds requests in every state.
            while held.len() > keep {
                let submission = held.swap_remove(0);
                let region = server
                    .regions()
                    .get(RegionId(submission.region))
                    .expect("regions come before requests");
                region
                    .write(submission.region_offset, &submission.offset.to_le_bytes())
                    .unwrap();
                let values = [submission.offset, 0];
                server.complete(Completion {
                    tag: submission.tag,
                    values,
                    ..Completion::default()
                });
            }
            server.publish();
            if !fresh {
                if server.prepare_sleep() {
                    wait(&server.fds(), 2);
                    slept = true;
                }
                server.wake();
                server.service();
            }
        }
    }

    #[test]
    fn no_request_is_lost_or_answered_twice_over_many_kills_of_the_server() {
        if std::env::var_os(SOCKET).is_some() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let options = ConnectOptions {
            role: 1,
            client_id: 1,
            ring_size: RING,
            arena_len: 4096,
            on_server_death: OnServerDeath::Replay,
            allowed_uids: Vec::new(),
        };
        let mut client = SharedClient::connect(&path, options).unwrap();
        let memory = Region::anonymous(8 * RING).unwrap();
        client.add_region(REGION, memory.clone()).unwrap();

        let mut child = spawn_server(&path);
        let mut waiting = HashSet::new();
        let mut submitted = 0u64;
        let mut answered = 0u64;
        let (mut kills, mut kill_at, mut replayed) = (0, 500, 0);
        // Some seconds of standstill at most, then something hangs.
        let mut idle = 0;
        while kills < KILLS || !waiting.is_empty() {
            let before = answered;
            while kills < KILLS && client.credits() > 0 {
                let place = submitted % RING as u64 * 8;
                let submission = Submission {
                    region: REGION.0,
                    region_offset: place,
                    offset: submitted,
                    ..Submission::default()
                };
                client.submit(submitted, submission).unwrap();
                waiting.insert(submitted);
                submitted += 1;
            }
            client.publish();
            if kills < KILLS && answered >= kill_at && client.is_connected() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                kill_at = answered + 200 + kills * 37 % 300;
                while client.is_connected() {
                    client.service();
                }
                while let Some(answer) = client.complete() {
                    answered += 1;
                    check(&mut waiting, answer);
                }
                replayed += client.in_flight();
                child = spawn_server(&path);
            }
            while let Some(answer) = client.complete() {
                answered += 1;
                check(&mut waiting, answer);
            }
            if answered == before {
                if client.prepare_sleep() {
                    // The tick of a reactor: while nobody listens there is nothing to watch.
                    wait(&client.fds(), 2);
                    idle += 1;
                    assert!(
                        idle < 10_000,
                        "stuck with {} requests after {kills} kills",
                        waiting.len()
                    );
                }
                client.wake();
                while client.service() {}
            } else {
                idle = 0;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(answered, submitted);
        assert_eq!(client.incarnation(), KILLS + 1);
        assert_eq!(client.violations(), (0, None));
        assert!(replayed > 100, "kills found work in flight: {replayed}");
    }
}
