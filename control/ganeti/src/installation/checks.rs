//! Whether everything works together: what Ganeti calls, QEMU, the node, and Ganeti itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use archipelago_api::client::Client;
use archipelago_protocol::Error;
use nix::sys::utsname::uname;
use serde::Serialize;

use super::places::Places;
use super::provider::{PROGRAM_NAME, link_names};
use crate::actions::{self, Node};
use crate::call::Call;
use crate::clock::SystemClock;
use crate::settings::Settings;
use crate::wrapper;

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// What is wrong with it; null: nothing.
    pub problem: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Finding {
    fn good(what: impl Into<String>) -> Finding {
        Finding {
            what: what.into(),
            problem: None,
            hint: String::new(),
        }
    }

    fn bad(
        what: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding {
            what: what.into(),
            problem: Some(problem.into()),
            hint: hint.into(),
        }
    }

    fn of<T>(what: &str, found: Result<T, Error>) -> Finding {
        match found {
            Ok(_) => Finding::good(what),
            Err(error) => Finding::bad(what, error.message, error.hint),
        }
    }
}

const INSTALL: &str = "archipelago ganeti install";

/// Looks at what is at `places`, whose settings are `settings`.
pub(super) fn look(places: &Places, settings: Option<&Settings>) -> Vec<Finding> {
    let provider = &places.provider;
    let Some(settings) = settings else {
        let what = format!("provider {}", provider.display());
        return vec![Finding::bad(what, "it is not installed", INSTALL)];
    };
    let mut findings = vec![scripts(provider), logs(&places.logs)];
    findings.push(Finding::of(
        "QEMU for vhost-user disks",
        wrapper::check_qemu(settings),
    ));
    findings.push(node(settings));
    findings.extend(ganeti(settings));
    findings
}

/// Each script must lead to a program, and is a file that may be run then.
fn scripts(provider: &Path) -> Finding {
    let what = format!("provider {}", provider.display());
    let lost = link_names().find(|name| {
        let program = fs::canonicalize(provider.join(name)).ok();
        let name = program.as_deref().and_then(Path::file_name);
        name.is_none_or(|name| name != PROGRAM_NAME)
    });
    match lost {
        None => Finding::good(what),
        Some(name) => Finding::bad(
            what,
            format!("`{name}` leads to no {PROGRAM_NAME}"),
            INSTALL,
        ),
    }
}

fn logs(logs: &Path) -> Finding {
    let what = format!("directory of Ganeti's logs {}", logs.display());
    match logs.is_dir() {
        true => Finding::good(what),
        false => Finding::bad(what, "it does not exist", INSTALL),
    }
}

fn node(settings: &Settings) -> Finding {
    let verified = settings.layout().and_then(|layout| {
        let client = Client::new(layout);
        actions::run(&Call::Verify, &Node::new(&client, &SystemClock, settings))
    });
    Finding::of("node of this host", verified)
}

/// What Ganeti says of the provider, if this host is its master: all nodes of a group must have it.
fn ganeti(settings: &Settings) -> Option<Finding> {
    let Some((major, minor)) = settings.ganeti_version() else {
        let state = settings.ganeti_state().display();
        let problem = format!("{state} is not that of a node of Ganeti");
        return Some(Finding::bad(
            "Ganeti",
            problem,
            "gnt-node add, or --ganeti-state DIR",
        ));
    };
    if (major, minor) < (3, 0) {
        let problem = format!("version {major}.{minor} was never tried");
        return Some(Finding::bad("Ganeti", problem, "use 3.0 or newer"));
    }
    if !is_master(settings) {
        return Some(Finding::good(format!("Ganeti {major}.{minor}")));
    }
    let what = format!("Ganeti {major}.{minor}: gnt-storage diagnose");
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
            return Some(Finding::bad(what, words, hint));
        }
        Err(error) => return Some(Finding::bad(what, error.to_string(), hint)),
    };
    Some(match diagnosis(&text) {
        None => Finding::good(what),
        Some(problem) => Finding::bad(what, problem, hint),
    })
}

/// What `gnt-storage diagnose` finds wrong with the provider; nothing if it finds none.
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
}
