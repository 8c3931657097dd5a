//! A pool beside another one of the node: on a file system that another host uses, and on one that does not answer.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::{Call, Class, Disk, Fault, Kind, Lack, Site};
use archipelago_fault_tests::host::Host;
use archipelago_fault_tests::server::{Answer, Server, wait_for, wait_until};

/// The daemon retries a pool that is not served after 1 s, 2 s and so on: several times within this.
const RETRIES: Duration = Duration::from_secs(8);
/// And once within this, however often it has failed.
const SERVED: Duration = Duration::from_secs(60);
/// How long a client waits for a pool that is being added, before it is killed.
const CLIENT: Duration = Duration::from_secs(2);

fn done(answer: Answer) -> Result<String> {
    match answer {
        Answer::Done(text) => Ok(text),
        Answer::Refused(code, text) => bail!("{code}: {text}"),
    }
}

fn is_served(server: &Server, pool: &str) -> bool {
    let create = ["volume", "create", "probe", "--size", "1048576"];
    let answer = server.call(&[&create[..], &["--pool", pool]].concat());
    matches!(answer, Ok(Answer::Done(_)))
}

#[test]
fn a_pool_that_another_host_serves_is_served_here_once_that_host_has_released_it() -> Result<()> {
    let disks = Disk::mount_without(Lack::Nothing).and_then(|disk| Ok((disk.mount_again()?, disk)));
    let hosts =
        Host::new("alpha", 0xa0, 0xa1).and_then(|it| Ok((it, Host::new("beta", 0xb0, 0xb1)?)));
    let ((second, first), (alpha, beta)) = match (disks, hosts) {
        (Ok(disks), Ok(hosts)) => (disks, hosts),
        (Err(error), _) | (_, Err(error)) => {
            return skip(&format!("no FUSE file system, or no namespaces: {error:#}"));
        }
    };
    let alpha = Server::on(alpha)?;
    let shared = first.path().join("pool");
    done(alpha.call(&["init", "--pool-dir", &shared.display().to_string()])?)?;
    done(alpha.start()?)?;

    let beta = Server::on(beta)?;
    done(beta.call(&["init"])?)?;
    let config = beta.root().join("archipelago.toml");
    let directory = second.path().join("pool");
    let section = format!(
        "\n[pool.shared]\nkind = \"file\"\ndirectory = \"{}\"\n",
        directory.display()
    );
    std::fs::write(&config, std::fs::read_to_string(&config)? + &section)?;
    done(beta.start()?)?;
    let status = done(beta.call(&["node", "status"])?)?;
    ensure!(status.contains("host `alpha`"), "{status}");
    // What is tried again meanwhile takes nothing from the other host, and is not lost for ever.
    let mut problems = Ok(String::new());
    let watched = wait_for("more tries", RETRIES, || {
        problems = beta.call(&["node", "status"]).and_then(done);
        problems.as_ref().is_err() || problems.as_ref().is_ok_and(|it| it.contains("taken over"))
    });
    ensure!(watched.is_err(), "{problems:?}");
    done(alpha.call(&["volume", "create", "disk", "--size", "1048576"])?)?;
    done(alpha.stop()?)?;
    wait_for("the pool", SERVED, || is_served(&beta, "shared"))?;
    let listed = done(beta.call(&["volume", "list"])?)?;
    ensure!(listed.contains("disk"), "{listed}");
    done(beta.stop()?)?;
    Ok(())
}

#[test]
fn a_pool_whose_client_goes_away_while_it_is_added_is_added() -> Result<()> {
    let disk = match Disk::mount() {
        Ok(disk) => disk,
        Err(error) => return skip(&format!("a FUSE file system cannot be mounted: {error:#}")),
    };
    let server = Server::new()?;
    done(server.call(&["init"])?)?;
    done(server.start()?)?;
    let site = Site {
        phase: "add",
        kind: Kind::MakeDirectory,
        class: Class::Pool,
        call: Call::First,
    };
    disk.plan(&[(site, Fault::Never)]);
    disk.enter("add");
    let directory = disk.path().join("pool").display().to_string();
    let add = ["pool", "add", "slow", "--dir", &directory];
    ensure!(
        server.call_within(&add, CLIENT).is_err(),
        "nothing was held"
    );
    wait_until("the call that is held", || disk.held() > 0)?;
    // Others are served meanwhile.
    ensure!(
        is_served(&server, "default"),
        "the other pool is not served"
    );
    disk.release();
    wait_until("the pool in the list", || {
        let listed = server.call(&["pool", "list"]).and_then(done);
        listed.is_ok_and(|listed| listed.contains("slow"))
    })?;
    done(server.call(&["pool", "remove", "slow"])?)?;
    done(server.stop()?)?;
    wait_until("the end of all use", || !disk.in_use())
}
