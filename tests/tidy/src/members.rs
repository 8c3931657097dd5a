//! Which crates of the workspace need librados, and which ones a build without names takes in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The folder of the crate that links librados.
const LINKS_LIBRADOS: &str = "peers/librados-sys";

/// The members of a workspace, by their folders.
#[derive(Debug)]
pub struct Members {
    /// All.
    pub all: BTreeSet<String>,
    /// Those of a build without names.
    pub default: BTreeSet<String>,
    /// Those that cannot be built or tested without librados.
    pub need_librados: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Workspace {
    members: Vec<String>,
    default_members: Vec<String>,
    dependencies: BTreeMap<String, toml::Value>,
}

/// A `Cargo.toml`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Manifest {
    workspace: Option<Workspace>,
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default)]
    dev_dependencies: BTreeMap<String, toml::Value>,
    #[serde(default)]
    build_dependencies: BTreeMap<String, toml::Value>,
}

fn manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

/// The members of the workspace at `root`.
///
/// # Errors
/// A `Cargo.toml` cannot be read or parsed.
pub fn members(root: &Path) -> Result<Members> {
    let workspace = manifest(root)?.workspace.context("no workspace")?;
    let folder = |name: &String| workspace.dependencies.get(name)?.get("path")?.as_str();
    let mut needs = BTreeMap::new();
    for member in &workspace.members {
        let manifest = manifest(&root.join(member))?;
        let names = [
            manifest.dependencies,
            manifest.dev_dependencies,
            manifest.build_dependencies,
        ];
        let names = names.iter().flat_map(BTreeMap::keys);
        needs.insert(
            member.as_str(),
            names.filter_map(folder).collect::<Vec<_>>(),
        );
    }
    let mut need_librados = BTreeSet::from([LINKS_LIBRADOS]);
    loop {
        let before = need_librados.len();
        let more = needs
            .iter()
            .filter(|(_, needs)| needs.iter().any(|one| need_librados.contains(one)));
        let more: Vec<&str> = more.map(|(member, _)| *member).collect();
        need_librados.extend(more);
        if need_librados.len() == before {
            break;
        }
    }
    Ok(Members {
        need_librados: need_librados.into_iter().map(str::to_owned).collect(),
        all: workspace.members.iter().cloned().collect(),
        default: workspace.default_members.into_iter().collect(),
    })
}
