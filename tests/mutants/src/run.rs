//! Builds and runs a test in the copy.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::list::{Mutant, Test};
use crate::report::{Outcome, Verdict};
use crate::tree::Tree;

/// Seconds that a build may take: the first one builds the dependencies.
const BUILD_SECONDS: u32 = 900;

/// Runs mutants one after another.
#[derive(Debug)]
pub struct Runner<'a> {
    root: &'a Path,
    tree: &'a Tree,
    target: PathBuf,
}

impl<'a> Runner<'a> {
    /// With build results below `target`, of a copy of the sources at `root`.
    #[must_use]
    pub fn new(root: &'a Path, tree: &'a Tree, target: &Path) -> Self {
        Runner {
            root,
            tree,
            target: target.to_owned(),
        }
    }

    /// What `test` says of `mutant`.
    ///
    /// # Errors
    /// The mutant is stale, or a program could not be started.
    pub fn mutant(&self, mutant: &Mutant, test: &Test) -> Result<Outcome> {
        self.tree
            .with(mutant, || self.test(test))
            .with_context(|| mutant.name.clone())
    }

    /// What `test` says of the copy as it is.
    ///
    /// # Errors
    /// A program could not be started.
    pub fn test(&self, test: &Test) -> Result<Outcome> {
        let began = now();
        let build = self.cargo(test, &["--no-run"], BUILD_SECONDS)?;
        let build_seconds = began.elapsed().as_secs();
        let mut outcome = Outcome {
            verdict: Verdict::NotBuilt,
            test: 0,
            build: build_seconds,
        };
        if build.status.success() {
            let began = now();
            let filter: Vec<&str> = test.filter.split_whitespace().collect();
            let arguments = [&["--"], filter.as_slice(), &["--nocapture"]].concat();
            let run = self.cargo(test, &arguments, test.seconds)?;
            let said = [run.stdout, run.stderr].concat();
            outcome.verdict = Verdict::of(run.status.code(), &String::from_utf8_lossy(&said));
            outcome.test = began.elapsed().as_secs();
        }
        Ok(outcome)
    }

    fn cargo(&self, test: &Test, arguments: &[&str], seconds: u32) -> Result<Output> {
        // `timeout` also ends what Cargo has started.
        Command::new("timeout")
            .args([
                "--kill-after=5",
                &seconds.to_string(),
                "cargo",
                "test",
                "--release",
                "--quiet",
            ])
            .args(test.target.split_whitespace())
            .args(arguments)
            .current_dir(self.tree.path())
            .env("CARGO_TARGET_DIR", &self.target)
            // What tests of the whole system take from elsewhere: the command, which only starts the mutant, and guests.
            .env(
                "ARCHIPELAGO_BIN_DIR",
                or("ARCHIPELAGO_BIN_DIR", self.root.join("target/release")),
            )
            .env(
                "ARCHIPELAGO_GUEST_DIR",
                or("ARCHIPELAGO_GUEST_DIR", self.root.join(".cache/guest")),
            )
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            // Each build is run for seconds: what takes long is the compiler.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "64")
            .env("RUST_BACKTRACE", "0")
            .envs(&test.env)
            .output()
            .context("timeout cargo test")
    }
}

/// What the environment says, or `path`.
fn or(variable: &str, path: PathBuf) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| path.into())
}

#[expect(clippy::disallowed_methods, reason = "measures other processes")]
fn now() -> Instant {
    Instant::now()
}
