//! A client and a server in two processes: `cargo run -p xseg --example two_processes`.
//!
//! The program starts itself again as the server, writes through the server into shared memory, and prints the result.

use std::error::Error;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xseg::shared::{Admission, ConnectOptions, Listener, OnServerDeath, SharedClient};
use xseg::{ClientPort, Completion, RegionId, ServerPort, Submission};

const TEXT: &[u8] = b"through the arena";

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(path) = std::env::args_os().nth(1) {
        return serve(Path::new(&path));
    }
    let directory = std::env::temp_dir().join(format!("xseg-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let path = directory.join("socket");
    let mut server = Command::new(std::env::current_exe()?).arg(&path).spawn()?;
    let options = ConnectOptions {
        role: 1,
        client_id: 1,
        ring_size: 64,
        arena_len: 4096,
        on_server_death: OnServerDeath::Replay,
        allowed_uids: Vec::new(),
    };
    let mut client = SharedClient::connect(&path, options)?;
    client.arena().write(0, TEXT)?;
    // Submitted before there is a server: the port sends it as soon as a server is there.
    let len = u32::try_from(TEXT.len())?;
    client.submit(
        17,
        Submission {
            op: 1,
            len,
            region: RegionId::ARENA.0,
            ..Submission::default()
        },
    )?;
    let (cookie, completion) = loop {
        if let Some(answer) = client.complete() {
            break answer;
        }
        client.publish();
        if client.prepare_sleep() {
            wait(&client.fds())?;
        }
        client.wake();
        client.service();
    };
    drop(client);
    server.wait()?;
    std::fs::remove_dir_all(&directory)?;
    writeln!(
        io::stdout(),
        "request {cookie}: the server read {} bytes",
        completion.result
    )?;
    Ok(())
}

fn serve(path: &Path) -> Result<(), Box<dyn Error>> {
    let mut listener = Listener::bind(path, Admission::own([1]))?;
    let mut server = loop {
        if let Some(server) = listener.accept() {
            break server;
        }
        wait(&[listener.fd()])?;
    };
    server.start();
    while !server.is_closed() {
        while let Some(request) = server.accept() {
            let mut bytes = vec![0; usize::try_from(request.len)?.min(4096)];
            let region = server.regions().get(RegionId(request.region));
            let read =
                region.is_some_and(|region| region.read(request.region_offset, &mut bytes).is_ok());
            let result = if read && bytes == TEXT {
                i32::try_from(bytes.len())?
            } else {
                -1
            };
            server.complete(Completion {
                tag: request.tag,
                result,
                ..Completion::default()
            });
        }
        server.publish();
        if server.prepare_sleep() {
            wait(&server.fds())?;
        }
        server.wake();
        server.service();
    }
    Ok(())
}

/// What a reactor does: waits for a doorbell, a socket, or the next tick.
fn wait(fds: &[BorrowedFd<'_>]) -> Result<(), Box<dyn Error>> {
    let mut fds: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    poll(&mut fds, PollTimeout::from(10u8))?;
    Ok(())
}
