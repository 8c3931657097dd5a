//! One pool, two hosts: each has a mount of its own, whose locks the other does not see. One node serves the pool, and the
//! other says who that is.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::{Disk, Lack};
use archipelago_fault_tests::host::Host;
use archipelago_fault_tests::server::{Answer, Server, wait_for};

/// Exit code of what is in use.
const IN_USE: i32 = 5;
/// A start that waits for nobody: an owner is watched for 12 s.
const AT_ONCE: Duration = Duration::from_secs(8);
/// A takeover beside an opening that is watching the owner already: twice 12 s, the wait in between, and then some.
const LATE: Duration = Duration::from_secs(60);
/// A former owner looks at the record each 2 s.
const NOTICES: Duration = Duration::from_secs(10);

fn done(answer: Answer) -> Result<String> {
    match answer {
        Answer::Done(text) => Ok(text),
        Answer::Refused(code, text) => bail!("{code}: {text}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "measures another process")]
fn now() -> Instant {
    Instant::now()
}

/// A mount of one pool, and the node that has its pool there. The mount outlives the node.
struct Place {
    server: Server,
    disk: Disk,
}

impl Place {
    fn new(disk: Disk, host: Option<Host>) -> Result<Place> {
        let server = match host {
            None => Server::new()?,
            Some(host) => Server::on(host)?,
        };
        let pool = disk.path().join("pool");
        done(server.call(&["init", "--pool-dir", &pool.display().to_string()])?)?;
        Ok(Place { server, disk })
    }

    /// Starts the node, which waits for nobody.
    fn start(&self) -> Result<()> {
        let began = now();
        done(self.server.start()?)?;
        ensure!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
        Ok(())
    }

    /// Starts the node in vain: what it says.
    fn refused(&self, options: &[&str]) -> Result<String> {
        match self.server.start_with(options)? {
            Answer::Refused(IN_USE, said) => Ok(said),
            other => bail!("two nodes serve one pool: {other:?}"),
        }
    }

    fn create(&self, volume: &str) -> Result<()> {
        let arguments = ["volume", "create", volume, "--size", "1048576"];
        done(self.server.call(&arguments)?).map(drop)
    }

    fn status(&self) -> Result<String> {
        done(self.server.call(&["node", "status"])?)
    }
}

/// Two hosts with a mount each of one pool; `None` if this process may not make them.
fn hosts(alpha: Option<Host>, beta: Option<Host>) -> Result<Option<(Place, Place)>> {
    let disks = Disk::mount_without(Lack::Nothing).and_then(|disk| Ok((disk.mount_again()?, disk)));
    let (second, first) = match disks {
        Ok(disks) => disks,
        Err(error) => {
            skip(&format!("a FUSE file system cannot be mounted: {error:#}"))?;
            return Ok(None);
        }
    };
    Ok(Some((Place::new(first, alpha)?, Place::new(second, beta)?)))
}

/// The same on pretended hosts, `alpha` and `beta`.
fn two_hosts() -> Result<Option<(Place, Place)>> {
    match Host::new("alpha", 0xa0, 0xa1)
        .and_then(|alpha| Ok((alpha, Host::new("beta", 0xb0, 0xb1)?)))
    {
        Ok((alpha, beta)) => hosts(Some(alpha), Some(beta)),
        Err(error) => {
            skip(&format!("another host cannot be pretended: {error:#}"))?;
            Ok(None)
        }
    }
}

#[test]
fn the_node_of_a_second_host_is_refused_by_the_name_of_the_first_and_takes_over_when_told()
-> Result<()> {
    let Some((alpha, beta)) = two_hosts()? else {
        return Ok(());
    };
    alpha.start()?;
    alpha.create("disk")?;
    let daemon = alpha.server.pid().context("a daemon")?;
    let data = alpha.server.processes(AT_ONCE)?;
    let process = data.first().context("a data process")?;
    for options in [&[][..], &["--take-over"]] {
        let said = beta.refused(options)?;
        let run = alpha.server.root().join("run");
        for part in [
            "is served by another node: host `alpha`".to_owned(),
            format!("process {process}"),
            run.display().to_string(),
            "its heartbeat goes on".to_owned(),
            "archipelago node stop".to_owned(),
        ] {
            ensure!(said.contains(&part), "`{part}` is not in: {said}");
        }
        ensure!(
            said.trim().lines().count() <= 2,
            "one line, and what to do: {said}"
        );
    }
    let status = alpha.status()?;
    ensure!(
        status.contains("owner: this node, incarnation 1"),
        "{status}"
    );

    // As if the host hung: nobody can know whether it will continue.
    let all = || data.iter().chain([&daemon]);
    all().try_for_each(|pid| Node::freeze(*pid))?;
    let said = beta.refused(&[])?;
    for part in ["host `alpha`", "no heartbeat for 12 s", "--take-over"] {
        ensure!(said.contains(part), "`{part}` is not in: {said}");
    }
    done(beta.server.start_with(&["--take-over"])?)?;
    let status = beta.status()?;
    ensure!(
        status.contains("owner: this node, incarnation 2"),
        "{status}"
    );
    beta.create("other")?;

    // The host continues: its node sees that the pool is not its own any more.
    all().try_for_each(|pid| Node::thaw(*pid))?;
    wait_for("the end of the former owner", NOTICES, || {
        all().all(|pid| Node::is_dead(*pid))
    })?;
    let log = alpha.server.log();
    ensure!(log.contains("has been taken over by host `beta`"), "{log}");
    let said = alpha.refused(&[])?;
    ensure!(said.contains("host `beta`"), "{said}");
    done(beta.server.stop()?)?;
    alpha.start()?;
    let volumes = done(alpha.server.call(&["volume", "list"])?)?;
    ensure!(
        volumes.contains("disk") && volumes.contains("other"),
        "{volumes}"
    );
    done(alpha.server.stop()?)?;
    Ok(())
}

/// A node with a pool of its own: the one of a lost host is added to it, and taken over again when it was lost to that host meanwhile.
#[test]
fn a_pool_of_a_lost_host_is_taken_over_by_a_node_that_runs() -> Result<()> {
    let Some((alpha, beta)) = two_hosts()? else {
        return Ok(());
    };
    let own = tempfile::tempdir()?;
    let own = own.path().join("own");
    let call = |arguments: &[&str]| beta.server.call_within(arguments, LATE);
    let shared = beta.disk.path().join("pool").display().to_string();
    std::fs::remove_file(beta.server.root().join("archipelago.toml"))?;
    done(call(&["init", "--pool-dir", &own.display().to_string()])?)?;
    done(beta.server.start()?)?;
    let is_served =
        |wanted: &str| -> Result<()> { done(call(&["volume", "info", wanted])?).map(drop) };
    let refused = |arguments: &[&str], part: &str| match call(arguments)? {
        Answer::Refused(code, said) if said.contains(part) => Ok(code),
        other => bail!("{arguments:?}: {other:?}"),
    };

    alpha.start()?;
    alpha.create("disk")?;
    alpha.server.kill();
    let add = ["pool", "add", "shared", "--dir", &shared];
    ensure!(refused(&add, "host `alpha`")? == IN_USE, "{add:?}");
    done(call(&[&add[..], &["--take-over"]].concat())?)?;
    is_served("disk")?;
    refused(&["pool", "take-over", "shared"], "is served by this node")?;

    // The other host had it, and is lost again.
    done(beta.server.stop()?)?;
    alpha.start()?;
    alpha.create("other")?;
    done(beta.server.start()?)?;
    let pools = || done(call(&["pool", "info", "shared"])?);
    wait_for("the refusal", LATE, || {
        pools().is_ok_and(|text| text.contains("host `alpha`"))
    })?;
    let take_over = ["pool", "take-over", "shared"];
    ensure!(
        refused(&take_over, "its heartbeat goes on")? == IN_USE,
        "it lives"
    );
    alpha.server.kill();
    done(call(&take_over)?)?;
    is_served("other")?;
    done(beta.server.stop()?)?;
    Ok(())
}

#[test]
fn a_killed_node_starts_again_at_once_on_its_host_and_after_a_watch_when_that_was_restarted()
-> Result<()> {
    let Some((alpha, beta)) = two_hosts()? else {
        return Ok(());
    };
    alpha.start()?;
    alpha.create("disk")?;
    // A successor of the data process, under the same daemon.
    let data = alpha.server.processes(AT_ONCE)?;
    Node::kill(*data.first().context("a data process")?)?;
    wait_for("the data process's successor", AT_ONCE, || {
        alpha
            .status()
            .is_ok_and(|status| status.contains("owner: this node, incarnation 2"))
    })?;
    alpha.server.kill();
    alpha.start()?;
    let status = alpha.status()?;
    ensure!(
        status.contains("owner: this node, incarnation 3"),
        "{status}"
    );
    alpha.server.kill();
    let said = beta.refused(&[])?;
    ensure!(
        said.contains("host `alpha`") && said.contains("--take-over"),
        "{said}"
    );
    // The machine was restarted: nothing of its former kernel writes.
    alpha.server.host().context("a host")?.boot(0xa2)?;
    done(alpha.server.start()?)?;
    let log = alpha.server.log();
    ensure!(log.contains("watched for a heartbeat for 12 s"), "{log}");
    done(alpha.server.stop()?)?;
    // Released: nobody is asked.
    beta.start()?;
    done(beta.server.stop()?)?;
    Ok(())
}

#[test]
fn of_two_mounts_on_one_host_one_is_served() -> Result<()> {
    let Some((first, second)) = hosts(None, None)? else {
        return Ok(());
    };
    first.start()?;
    let said = second.refused(&[])?;
    ensure!(said.contains("its heartbeat goes on"), "{said}");
    first.server.kill();
    done(second.server.start()?)?;
    let said = first.refused(&[])?;
    ensure!(said.contains("its heartbeat goes on"), "{said}");
    done(second.server.stop()?)?;
    first.start()?;
    ensure!(first.disk.in_use(), "the pool is open by the first mount");
    done(first.server.stop()?)?;
    Ok(())
}

/// A pool of a program that kept no record, and one whose record was restored from an old copy.
#[test]
fn a_pool_without_a_record_or_with_two_is_served() -> Result<()> {
    let Some((first, second)) = hosts(None, None)? else {
        return Ok(());
    };
    let pool = first.disk.path().join("pool");
    let owner = pool.join("owner");
    let record = || -> Result<std::path::PathBuf> {
        let entries = std::fs::read_dir(&owner)?.collect::<Result<Vec<_>, _>>()?;
        let mut records = entries.into_iter();
        let record = records.next().context("no record")?.path();
        ensure!(records.next().is_none(), "two records");
        Ok(record)
    };
    let zeros = record()?;
    std::fs::remove_dir_all(&owner)?;
    first.start()?;
    ensure!(record()? != zeros, "a record of the owner");
    std::fs::write(&zeros, "")?;
    std::fs::write(owner.join("of-nothing"), "")?;
    let said = done(first.server.call(&["doctor"])?)?;
    for stray in [&zeros, &owner.join("of-nothing")] {
        ensure!(said.contains(&stray.display().to_string()), "{said}");
    }
    std::fs::remove_file(owner.join("of-nothing"))?;
    let said = second.refused(&[])?;
    ensure!(said.contains("its heartbeat goes on"), "{said}");
    done(first.server.stop()?)?;
    second.start()?;
    record()?;
    done(second.server.stop()?)?;
    Ok(())
}
