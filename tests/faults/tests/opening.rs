//! Opening a pool on a file system that lacks something: locks that exclude, or direct I/O.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_crash_tests::disk::{Disk as Guest, InFlight};
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::{Disk, Lack};
use archipelago_fault_tests::server::{Answer, DEADLINE, Server};

const BLOCK: usize = 4096;

fn done(answer: Answer) -> Result<String> {
    match answer {
        Answer::Done(text) => Ok(text),
        Answer::Refused(code, text) => bail!("{code}: {text}"),
    }
}

/// A node with its pool on a disk that lacks something; `None` if this process may not mount.
fn node(lack: Lack) -> Result<Option<(Disk, Server)>> {
    let disk = match Disk::mount_without(lack) {
        Ok(disk) => disk,
        Err(error) => {
            skip(&format!("a FUSE file system cannot be mounted: {error:#}"))?;
            return Ok(None);
        }
    };
    let server = Server::new()?;
    let pool = disk.path().join("pool");
    done(server.call(&["init", "--pool-dir", &pool.display().to_string()])?)?;
    Ok(Some((disk, server)))
}

#[test]
fn a_pool_whose_lock_excludes_nobody_is_refused_by_the_name_of_the_file_system() -> Result<()> {
    let Some((_disk, server)) = node(Lack::Locks)? else {
        return Ok(());
    };
    match server.start()? {
        Answer::Refused(_, said) => {
            ensure!(said.contains("can be locked twice"), "{said}");
            ensure!(said.contains("FUSE"), "{said}");
            ensure!(said.contains("mount the file system with locks"), "{said}");
        }
        Answer::Done(said) => bail!("a pool without locks is served: {said}"),
    }
    Ok(())
}

#[test]
fn a_file_system_that_refuses_direct_io_in_any_words_is_served_through_the_page_cache() -> Result<()>
{
    for errno in [libc::EIO, libc::ENODEV, libc::EOPNOTSUPP, libc::EINVAL] {
        let Some((_disk, server)) = node(Lack::Direct(errno))? else {
            return Ok(());
        };
        done(server.start()?)?;
        let status = done(server.call(&["node", "status"])?)?;
        let expected = "access: page cache: the file system refuses O_DIRECT";
        ensure!(status.contains(expected), "{errno}: {status}");
        done(server.call(&["volume", "create", "disk", "--size", "1048576"])?)?;
        let socket = PathBuf::from(done(server.call(&["volume", "attach", "disk"])?)?);
        let mut guest = Guest::connect(&socket, 4, BLOCK, InFlight::Tracked, DEADLINE)?;
        for (op, len) in [(Op::Write, BLOCK), (Op::Flush, 0), (Op::Read, BLOCK)] {
            let run = guest.run(op, 0, len, DEADLINE);
            run.with_context(|| format!("{op:?} after errno {errno}"))?;
        }
        drop(guest);
        done(server.stop()?)?;
    }
    Ok(())
}
