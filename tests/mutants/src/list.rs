//! The lists of mutants and of the tests that catch them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::anchor::Place;

/// How a test is called.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// For Cargo: package and target.
    pub target: String,
    /// For the test program: which of its tests.
    pub filter: String,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Seconds that it may take.
    pub seconds: u32,
}

/// One replacement.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// From the root of the sources: a file, or a folder in one of whose files the item stands.
    pub file: String,
    /// The function, method or constant: see [`crate::anchor`].
    #[serde(default)]
    pub item: Option<String>,
    /// Stands there exactly once.
    pub old: String,
    /// What stands there instead.
    pub new: String,
}

/// A way to break the protocol.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// What is broken, in words.
    pub name: String,
    /// Where: a peer and its part.
    pub place: String,
    /// The test that must fail.
    pub test: String,
    /// Others that must fail, too: suites of another kind.
    #[serde(default)]
    pub also: Vec<String>,
    /// One of the few that every run looks at.
    #[serde(default)]
    pub quick: bool,
    /// Why no test here notices. It is run all the same: should one notice, the list is to be changed.
    pub survives: Option<String>,
    /// What is changed.
    pub edit: Vec<Edit>,
}

impl Mutant {
    /// The tests that must fail, the quickest first.
    pub fn tests(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.test)
            .chain(&self.also)
            .map(String::as_str)
    }
}

/// All of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// By name.
    #[serde(default)]
    pub test: BTreeMap<String, Test>,
    /// In the order in which they are run.
    #[serde(default)]
    pub mutant: Vec<Mutant>,
}

impl List {
    /// Reads every `*.toml` list in `directory`.
    ///
    /// # Errors
    /// A list makes no sense: it names the list.
    pub fn read(directory: &Path) -> Result<List> {
        let mut paths: Vec<_> = fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        let mut list = List::default();
        let toml = |path: &&std::path::PathBuf| {
            path.extension().is_some_and(|ending| ending == "toml")
                && path.file_name().is_some_and(|name| name != "Cargo.toml")
        };
        for path in paths.iter().filter(toml) {
            let text = fs::read_to_string(path)?;
            let more: List = toml::from_str(&text).with_context(|| path.display().to_string())?;
            for (name, test) in more.test {
                let double = list.test.insert(name.clone(), test);
                ensure!(double.is_none(), "two tests are called {name}");
            }
            list.mutant.extend(more.mutant);
        }
        list.check()?;
        Ok(list)
    }

    fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for mutant in &self.mutant {
            ensure!(names.insert(&mutant.name), "two mutants: {}", mutant.name);
            for test in mutant.tests() {
                let known = self.test.contains_key(test);
                ensure!(known, "{}: there is no test {test}", mutant.name);
            }
            ensure!(!mutant.edit.is_empty(), "{}: no edit", mutant.name);
        }
        Ok(())
    }

    /// Looks whether every mutant still fits the sources at `root`: all that do not, with why.
    #[must_use]
    pub fn stale(&self, root: &Path) -> Vec<String> {
        let mut stale = Vec::new();
        for mutant in &self.mutant {
            for edit in &mutant.edit {
                if let Err(error) = Place::find(root, edit) {
                    stale.push(format!("mutant `{}`: {error:#}", mutant.name));
                }
            }
        }
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
    }

    #[test]
    fn every_mutant_fits_the_sources() {
        let list = List::read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let stale = list.stale(root());
        assert!(stale.is_empty(), "{}", stale.join("\n"));
        let noticed = list
            .mutant
            .iter()
            .filter(|mutant| mutant.survives.is_none());
        assert!(noticed.count() >= 140, "the list has shrunk");
    }
}
