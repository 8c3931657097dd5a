//! Builds and runs a test in the copy.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::list::{List, Mutant, Test};
use crate::report::{Outcome, Verdict};
use crate::tree::Tree;

/// Seconds that a build may take: the first one builds the dependencies.
const BUILD_SECONDS: u32 = 900;

/// Runs mutants one after another.
#[derive(Debug)]
pub struct Runner<'a> {
    list: &'a List,
    tree: &'a Tree,
    target: PathBuf,
}

impl<'a> Runner<'a> {
    /// With build results below `target`.
    #[must_use]
    pub fn new(list: &'a List, tree: &'a Tree, target: &Path) -> Self {
        Runner {
            list,
            tree,
            target: target.to_owned(),
        }
    }

    /// What the test of `mutant` says of it.
    ///
    /// # Errors
    /// The mutant is stale, or a program could not be started.
    pub fn mutant(&self, mutant: &Mutant) -> Result<Outcome> {
        let test = &self.list.test[&mutant.test];
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

#[expect(clippy::disallowed_methods, reason = "measures other processes")]
fn now() -> Instant {
    Instant::now()
}
