//! A file system that says for a moment that it has no room: ext4 does so for a few of 100,000 writes that allocate in many
//! sparse files at once, and takes them at the next try.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, bail, ensure};
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::{Call, Class, Disk, Fault, Kind, QUIET, Site};
use archipelago_fault_tests::server::{Answer, Server};

const PHASE: &str = "import";
/// Exit code of a command that found no room.
const NO_SPACE: i32 = 6;

fn done(answer: Answer) -> Result<String> {
    match answer {
        Answer::Done(text) => Ok(text),
        Answer::Refused(code, text) => bail!("{code}: {text}"),
    }
}

/// An import into a pool of its own, which waits for nothing, while the first `refusals` writes of its data fail with `errno`.
/// `None`: not to be tried here.
fn import(errno: i32, refusals: u64) -> Result<Option<Answer>> {
    let disk = match Disk::mount() {
        Ok(disk) => disk,
        Err(error) => {
            skip(&format!("a FUSE file system cannot be mounted: {error:#}"))?;
            return Ok(None);
        }
    };
    disk.enter(QUIET);
    let server = Server::new()?;
    let pool = disk.path().join("pool");
    done(server.call(&["init", "--pool-dir", &pool.display().to_string()])?)?;
    done(server.start()?)?;
    let source = tempfile::NamedTempFile::new()?;
    std::fs::write(source.path(), [7; 4096])?;
    let faults: Vec<(Site, Fault)> = (1..=refusals)
        .map(|number| {
            let site = Site {
                phase: PHASE,
                kind: Kind::Write,
                class: Class::Data,
                call: Call::Number(number),
            };
            (site, Fault::Errno(errno))
        })
        .collect();
    disk.plan(&faults);
    disk.enter(PHASE);
    let path = source.path().display().to_string();
    let answer = server.call(&["image", "import", &path, "image"])?;
    disk.enter(QUIET);
    let met = disk.injected().len();
    ensure!(
        met == faults.len(),
        "{met} of {refusals} writes were refused"
    );
    done(server.stop()?)?;
    Ok(Some(answer))
}

#[test]
fn a_write_that_finds_no_room_for_a_moment_is_tried_again_and_a_full_disk_is_reported() -> Result<()>
{
    for (refusals, done_at_last) in [(1, true), (3, true), (4, false)] {
        let Some(answer) = import(libc::ENOSPC, refusals)? else {
            return Ok(());
        };
        match answer {
            Answer::Done(_) => ensure!(done_at_last, "{refusals} refusals were survived"),
            Answer::Refused(code, said) => {
                ensure!(
                    !done_at_last && code == NO_SPACE,
                    "{refusals}: {code}: {said}"
                );
                ensure!(said.contains("full"), "{said}");
            }
        }
    }
    Ok(())
}

/// What is said of a failed write, and its exit code: by what would have to change, not by what is likely.
#[test]
fn each_reason_of_a_failed_write_has_its_words() -> Result<()> {
    for (errno, expected, words) in [
        (libc::EDQUOT, NO_SPACE, "file system is full"),
        (libc::ENOMEM, NO_SPACE, "no memory"),
        (libc::EFBIG, 1, "may not get so large"),
        (libc::EROFS, 1, "read-only"),
        (libc::EIO, 1, "input or output error"),
    ] {
        let Some(answer) = import(errno, 1)? else {
            return Ok(());
        };
        match answer {
            Answer::Done(_) => bail!("errno {errno} was survived"),
            Answer::Refused(code, said) => {
                ensure!(code == expected, "errno {errno}: {code}: {said}");
                ensure!(said.contains(words), "errno {errno}: {said}");
            }
        }
    }
    Ok(())
}
