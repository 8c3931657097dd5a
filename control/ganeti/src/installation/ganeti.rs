//! Checks that Ganeti can use the provider: its version, and on its master the settings of the cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::utsname::uname;
use serde::Deserialize;

use super::finding::Finding;
use super::provider::wrapper;
use crate::settings::Settings;

/// The cluster's configuration, in Ganeti's state directory on the master.
const CONFIGURATION: &str = "config.data";

/// The parts of the configuration that this program reads.
#[derive(Debug, Deserialize)]
struct Configuration {
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    #[serde(default)]
    prealloc_wipe_disks: bool,
    /// Parameters of each hypervisor.
    #[serde(default)]
    hvparams: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
}

/// Checks Ganeti; on its master also the cluster, for the provider in `provider`.
pub(super) fn look(provider: &Path, settings: &Settings) -> Vec<Finding> {
    if !is_master(settings) {
        return vec![version(settings)];
    }
    let mut findings = vec![version(settings)];
    findings.push(diagnose());
    let path = settings.ganeti_state().join(CONFIGURATION);
    let text = fs::read_to_string(&path).map_err(|error| error.to_string());
    let cluster = text.and_then(|text| {
        serde_json::from_str::<Configuration>(&text).map_err(|error| error.to_string())
    });
    match cluster {
        Ok(configuration) => findings.extend(configuration.cluster.look(&wrapper(provider))),
        Err(problem) => {
            let what = format!("configuration of the cluster {}", path.display());
            findings.push(Finding::bad(what, problem, "run this as root"));
        }
    }
    findings
}

fn version(settings: &Settings) -> Finding {
    let Some((major, minor)) = settings.ganeti_version() else {
        let state = settings.ganeti_state().display();
        let problem = format!("{state} is not a Ganeti state directory");
        return Finding::bad("Ganeti", problem, "gnt-node add, or --ganeti-state DIR");
    };
    if (major, minor) < (3, 0) {
        let problem = format!("version {major}.{minor} is not supported (tested: 3.0, 3.1)");
        return Finding::bad("Ganeti", problem, "use 3.0 or newer");
    }
    Finding::good(format!("Ganeti {major}.{minor}"))
}

/// Checks Ganeti's diagnosis of the provider: all nodes of a group must have it.
fn diagnose() -> Finding {
    let what = "Ganeti: gnt-storage diagnose";
    let hint = "run it: gnt-storage diagnose; it has to be installed on every node of a group";
    let output = Command::new("gnt-storage")
        .arg("diagnose")
        .stdin(Stdio::null())
        .output();
    let text = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Finding::bad(what, words, hint);
        }
        Err(error) => return Finding::bad(what, error.to_string(), hint),
    };
    match diagnosis(&text) {
        None => Finding::good(what),
        Some(problem) => Finding::bad(what, problem, hint),
    }
}

/// The problem that `gnt-storage diagnose` reports of the provider; `None` if it reports none.
fn diagnosis(text: &str) -> Option<String> {
    let mut lines = text.lines();
    if !lines.any(|line| line.trim() == "Provider: archipelago") {
        return Some("Ganeti does not find the provider".to_owned());
    }
    let of_provider = lines.take_while(|line| !line.starts_with("Provider: "));
    let mut bad = of_provider.filter(|line| {
        let of_node = line.contains("status: ") && !line.contains("status: valid");
        of_node || line.trim_end().ends_with("--> invalid")
    });
    bad.next().map(|line| line.trim().to_owned())
}

fn is_master(settings: &Settings) -> bool {
    let master = fs::read_to_string(settings.ganeti_state().join("ssconf_master_node"));
    let (Ok(master), Ok(host)) = (master, uname()) else {
        return false;
    };
    let master = master.trim();
    let host = host.nodename();
    host == master || master.split('.').next().is_some_and(|short| host == short)
}

impl Cluster {
    /// Checks the settings that the provider depends on: that disks over vhost-user use `wrapper`, and that clones are not overwritten.
    fn look(&self, wrapper: &Path) -> Vec<Finding> {
        let kvm_path = self
            .hvparams
            .get("kvm")
            .and_then(|of_kvm| of_kvm.get("kvm_path"));
        let kvm_path = kvm_path.and_then(|path| path.as_str());
        let mut findings = vec![Finding::good(match kvm_path {
            Some(path) if Path::new(path) == wrapper => {
                "kvm_path of the cluster: the wrapper".to_owned()
            }
            _ => format!(
                "kvm_path of the cluster: {}, not the wrapper; instances with access=userspace need it of their own",
                kvm_path.unwrap_or("Ganeti's default")
            ),
        })];
        if self.prealloc_wipe_disks {
            findings.push(Finding::bad(
                "prealloc_wipe_disks of the cluster",
                "it is on: Ganeti overwrites a clone of origin= with zeroes",
                "gnt-cluster modify --prealloc-wipe-disks=no",
            ));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Provider: archipelago\n---\n  Node: node1.example, status: valid (path: /usr/share/ganeti/extstorage/archipelago) \
        [parameters: origin, pool]\n  --\n  For nodegroup: default --> valid\n\nProvider: zfs\n---\n  Node: node1.example, status: invalid\n";

    #[test]
    fn what_ganeti_finds_wrong_is_found_in_its_words() {
        assert_eq!(diagnosis(GOOD), None);
        assert!(diagnosis("").is_some());
        assert!(diagnosis(&GOOD.replace("archipelago\n", "archipelago2\n")).is_some());
        let bad = GOOD.replace("status: valid", "status: invalid, error: no script");
        assert!(diagnosis(&bad).unwrap().contains("no script"));
        let of_group = GOOD.replace("--> valid", "--> invalid");
        assert!(diagnosis(&of_group).unwrap().contains("default"));
        let missing = GOOD.replace(
            "  --\n",
            "  Node: node2.example, status: ExtStorage provider not found\n  --\n",
        );
        assert!(diagnosis(&missing).unwrap().contains("node2.example"));
    }

    #[test]
    fn the_cluster_says_whether_it_has_the_wrapper_and_wipes_clones() {
        let wrapper = Path::new("/p/archipelago-kvm");
        for (kvm_path, wipes, words) in [
            ("/p/archipelago-kvm", "false", "the wrapper"),
            ("/usr/bin/kvm", "false", "/usr/bin/kvm, not the wrapper"),
            ("/p/archipelago-kvm", "true", "the wrapper"),
        ] {
            let text = format!(
                r#"{{"version": 3000000, "cluster": {{"prealloc_wipe_disks": {wipes}, "uuid": "u",
                "hvparams": {{"kvm": {{"acpi": true, "kvm_path": "{kvm_path}"}}, "fake": {{}}}}}}}}"#
            );
            let configuration: Configuration = serde_json::from_str(&text).unwrap();
            let findings = configuration.cluster.look(wrapper);
            assert!(
                findings[0].what.contains(&format!("cluster: {words}")),
                "{findings:?}"
            );
            let problem = findings.iter().find(|finding| finding.problem.is_some());
            assert_eq!(problem.is_some(), wipes == "true", "{findings:?}");
        }
        let configuration: Configuration = serde_json::from_str(r#"{"cluster": {}}"#).unwrap();
        assert_eq!(configuration.cluster.look(wrapper).len(), 1);
    }
}
