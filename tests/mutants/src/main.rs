//! `cargo run --release -p archipelago-mutants [-- --quick] [words of names]`: puts each mutant of `tests/mutants/*.toml` into a copy of
//! the sources, one after another, and checks that the test named beside the mutant fails. Prints a table row for each mutant and test.
//! `--list` prints the table of all mutants and builds nothing. The method: `docs/testing.md`, "Protocol mutants".

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use archipelago_mutants::{List, Mutant, Runner, Tree, Verdict};
use clap::Parser;

/// Breaks the protocol in named ways and sees that a test notices.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only the few that every run looks at.
    #[arg(long)]
    quick: bool,
    /// Only those of this test of the list.
    #[arg(long)]
    test: Option<String>,
    /// Only from this mutant on, by its whole name: continues a run that was interrupted.
    #[arg(long)]
    from: Option<String>,
    /// Prints the selected mutants, the place of each, and the tests that notice it. Builds and runs nothing.
    #[arg(long)]
    list: bool,
    /// The tests are known to pass without a mutant.
    #[arg(long)]
    trusted: bool,
    /// Only those whose names contain all of these words.
    words: Vec<String>,
}

impl Arguments {
    fn wants(&self, mutant: &Mutant) -> bool {
        let named = self.words.iter().all(|word| mutant.name.contains(word));
        named && (mutant.quick || !self.quick)
    }

    /// The tests of `mutant` that are to be run.
    fn tests<'a>(&self, mutant: &'a Mutant) -> impl Iterator<Item = &'a str> {
        // The others take longer than what is quick.
        let count = if self.quick { 1 } else { usize::MAX };
        let wants = |test: &&str| self.test.as_ref().is_none_or(|wanted| wanted == test);
        mutant.tests().take(count).filter(wants)
    }
}

/// The table of `--list`.
fn table<'a>(mutants: impl Iterator<Item = &'a Mutant>) -> String {
    let mut table = String::from(
        "| mutant | place | test | also | why no test notices it |\n|---|---|---|---|---|\n",
    );
    for mutant in mutants {
        let also = mutant.also.join(", ");
        let survives = mutant.survives.as_deref().unwrap_or_default();
        let cells = [&mutant.name, &mutant.place, &mutant.test, &also, survives];
        table.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    table
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.join("../..").canonicalize()?;
    let list = List::read(here)?;
    let stale = list.stale(&root);
    ensure!(stale.is_empty(), "{}", stale.join("\n"));
    let begins = |mutant: &&Mutant| match &arguments.from {
        Some(name) => mutant.name == *name,
        None => true,
    };
    let wanted: Vec<(&Mutant, &str)> = list
        .mutant
        .iter()
        .skip_while(|mutant| !begins(mutant))
        .filter(|mutant| arguments.wants(mutant))
        .flat_map(|mutant| arguments.tests(mutant).map(move |test| (mutant, test)))
        .collect();
    ensure!(!wanted.is_empty(), "no mutant has such a name");
    if arguments.list {
        let mut mutants: Vec<&Mutant> = wanted.iter().map(|(mutant, _)| *mutant).collect();
        mutants.dedup_by(|one, other| one.name == other.name);
        print!("{}", table(mutants.into_iter()));
        return Ok(());
    }

    let below = std::env::var_os("CARGO_TARGET_DIR")
        .map_or(root.join("target"), |dir| root.join(dir))
        .join("mutants");
    let tree = Tree::bring(&root, &below.join("tree"))?;
    let runner = Runner::new(&root, &tree, &below.join("build"));

    // A test that fails by itself would catch everything.
    let tests: BTreeSet<&str> = wanted.iter().map(|(_, test)| *test).collect();
    for name in tests.iter().filter(|_| !arguments.trusted) {
        let outcome = runner.test(&list.test[*name])?;
        println!(
            "unbroken, {name}: {} s to build, {} s",
            outcome.build, outcome.test
        );
        ensure!(
            outcome.verdict == Verdict::Survived,
            "test {name} fails without a mutant: {}",
            outcome.verdict
        );
    }

    println!("\n| mistake | where | caught by | after | s |\n|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for (mutant, test) in &wanted {
        let outcome = runner.mutant(mutant, &list.test[*test])?;
        println!(
            "| {} | {} | {} | {} |",
            mutant.name, mutant.place, outcome.verdict, outcome.test
        );
        std::io::stdout().flush()?;
        let right = match outcome.verdict {
            Verdict::Caught(..) => mutant.survives.is_none(),
            Verdict::Survived => mutant.survives.is_some(),
            _ => false,
        };
        if !right {
            wrong.push(mutant.name.as_str());
        }
    }
    if !wrong.is_empty() {
        bail!(
            "{} of {} tests of mutants did not fare as the list says:\n  {}",
            wrong.len(),
            wanted.len(),
            wrong.join("\n  ")
        );
    }
    println!("\nmutants: all {} fared as the list says", wanted.len());
    Ok(())
}
