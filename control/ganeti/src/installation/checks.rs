//! Checks that the parts work together: the scripts, QEMU and the node here; Ganeti itself in [`ganeti`].

use std::fs;
use std::path::Path;

use archipelago_api::client::Client;

use super::finding::Finding;
use super::ganeti;
use super::places::{Places, SEARCH_PATH};
use super::provider::{PARAMETERS_NAME, PROGRAM_NAME, has_parameters_list, link_names};
use crate::actions::{self, Node};
use crate::call::Call;
use crate::clock::SystemClock;
use crate::settings::Settings;
use crate::wrapper;

const INSTALL: &str = "archipelago ganeti install";

/// Checks the installation at `places`, whose settings are `settings`.
pub(super) fn look(places: &Places, settings: Option<&Settings>) -> Vec<Finding> {
    let provider = &places.provider;
    let Some(settings) = settings else {
        let what = format!("provider {}", provider.display());
        return vec![Finding::bad(what, "it is not installed", INSTALL)];
    };
    let mut findings = vec![scripts(provider), logs(&places.logs)];
    findings.extend(hidden(provider, &SEARCH_PATH.map(Path::new)));
    findings.push(Finding::of(
        "QEMU for vhost-user disks",
        wrapper::check_qemu(settings),
    ));
    findings.push(node(settings));
    findings.extend(ganeti::look(provider, settings));
    findings
}

/// Each script must be a link to this program, and the list of parameters that of this version.
fn scripts(provider: &Path) -> Finding {
    let what = format!("provider {}", provider.display());
    let lost = link_names().find(|name| {
        let program = fs::canonicalize(provider.join(name)).ok();
        let name = program.as_deref().and_then(Path::file_name);
        name.is_none_or(|name| name != PROGRAM_NAME)
    });
    if let Some(name) = lost {
        let problem = format!("`{name}` does not link to {PROGRAM_NAME}");
        return Finding::bad(what, problem, INSTALL);
    }
    match has_parameters_list(provider) {
        true => Finding::good(what),
        false => {
            let problem = format!("`{PARAMETERS_NAME}` is missing or not that of this version");
            Finding::bad(what, problem, INSTALL)
        }
    }
}

/// Another provider of the same name that Ganeti finds first, if `provider` is in one of the directories `search_path`.
fn hidden(provider: &Path, search_path: &[&Path]) -> Option<Finding> {
    let name = provider.file_name()?;
    let at = search_path
        .iter()
        .position(|one| Some(*one) == provider.parent())?;
    let mut earlier = search_path[..at].iter().map(|one| one.join(name));
    let other = earlier.find(|path| path.exists())?;
    let problem = format!("Ganeti finds {} first", other.display());
    let hint = "move that away: an older provider, which Ganeti would run in place of this one";
    let what = format!("search path of {}", provider.display());
    Some(Finding::bad(what, problem, hint))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_ganeti_finds_first_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let search_path = [first.as_path(), second.as_path(), third.as_path()];
        let ours = second.join("archipelago");
        fs::create_dir_all(&ours).unwrap();
        fs::create_dir_all(third.join("archipelago")).unwrap();
        fs::create_dir_all(first.join("zfs")).unwrap();
        assert_eq!(hidden(&ours, &search_path), None);
        let older = first.join("archipelago");
        fs::create_dir_all(&older).unwrap();
        let finding = hidden(&ours, &search_path).unwrap();
        let problem = finding.problem.unwrap();
        assert!(problem.contains(older.to_str().unwrap()), "{problem}");
        // A directory that Ganeti searches only if it is configured to.
        assert_eq!(
            hidden(&dir.path().join("d/archipelago"), &search_path),
            None
        );
    }
}
