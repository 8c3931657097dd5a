//! The life of an instance by Ganeti's remote API, which web front ends and tools use.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, ensure};
use archipelago_ganeti_tests::cluster::{Cluster, NODE};
use archipelago_ganeti_tests::footprint::Footprint;
use archipelago_ganeti_tests::instance::Instance;
use archipelago_ganeti_tests::rapi::Rapi;
use archipelago_ganeti_tests::steps::step;
use archipelago_ganeti_tests::storage::Storage;
use serde_json::json;

const NAME: &str = "r1.example";

#[test]
fn an_instance_by_the_remote_api() -> Result<()> {
    let cluster = Cluster::start()?;
    let storage = step(&cluster, "node started, provider installed", || {
        Storage::start(&cluster)
    })?;
    let before = Footprint::of(&storage)?;
    let rapi = step(&cluster, "a user of the remote API", || Rapi::new(&cluster))?;
    let step_of = |name: &str, does: &dyn Fn() -> Result<()>| step(&cluster, name, does);
    let path = format!("/instances/{NAME}");
    let instance = Instance::named(&cluster, NAME);
    step_of(
        "POST instances: with the scripts of an operating system",
        &|| {
            let body = json!({
                "__version__": 1, "mode": "create", "instance_name": NAME, "disk_template": "ext",
                "disks": [{"size": 64, "provider": "archipelago", "pool": "second"}],
                "nics": [], "os_type": "tiny+default", "pnode": NODE, "beparams": {"minmem": 192, "maxmem": 192},
                "name_check": false, "ip_check": false, "start": true,
            });
            rapi.job("POST", "/instances", Some(&body))?;
            let said = instance.console()?.run("head -n 1 /dev/vda")?;
            ensure!(
                said == format!("tiny of {NAME}"),
                "the disk begins with {said:?}"
            );
            Ok(())
        },
    )?;
    step_of("GET instances: the disk is shown", &|| {
        let said = rapi.get(&path)?;
        ensure!(
            said["disk_template"] == "ext" && said["disk.sizes"] == json!([64]),
            "{said}"
        );
        Ok(())
    })?;
    step_of("POST disk/0/grow, POST reboot: the guest sees it", &|| {
        rapi.job(
            "POST",
            &format!("{path}/disk/0/grow"),
            Some(&json!({"amount": 32})),
        )?;
        // Ganeti waits two minutes here for a guest that takes no notice of ACPI; this one stops.
        instance
            .console()?
            .run("(sleep 3; poweroff -f) >/dev/null 2>&1 &")?;
        rapi.job("POST", &format!("{path}/reboot?type=hard"), None)?;
        instance
            .console()?
            .run(&format!("sectors_are vda {}", 96 << 11))
            .map(drop)
    })?;
    step_of("PUT shutdown, PUT startup", &|| {
        rapi.job(
            "PUT",
            &format!("{path}/shutdown"),
            Some(&json!({"timeout": 1})),
        )?;
        rapi.job("PUT", &format!("{path}/startup"), None)?;
        instance
            .console()?
            .run(&format!("sectors_are vda {}", 96 << 11))
            .map(drop)
    })?;
    step_of("DELETE: nothing is left", &|| {
        rapi.job(
            "PUT",
            &format!("{path}/shutdown"),
            Some(&json!({"timeout": 1})),
        )?;
        rapi.job("DELETE", &path, None)?;
        before.await_again(&storage)
    })?;
    step_of("gnt-cluster verify is clean", &|| cluster.verify())?;
    cluster.stop()
}
