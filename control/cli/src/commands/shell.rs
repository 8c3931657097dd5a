//! Manual pages and completions, which packages install: made from the same definitions as the help.

use std::io::Write;
use std::path::Path;

use archipelago_protocol::{Error, ErrorCode};
use clap::CommandFactory;

use crate::options::{Options, Shell};

/// The name of the program.
const PROGRAM: &str = "archipelago";

/// Prints the script that completes commands in `shell`.
pub(super) fn completions(shell: Shell) -> Result<(), Error> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Options::command(), PROGRAM, &mut script);
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(&script)
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::new(ErrorCode::Io, format!("standard output: {error}")))
}

/// Writes a page for each command into `directory`, which is created if it does not exist.
pub(super) fn manual(directory: &Path) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::Io, format!("{}: {error}", directory.display()))
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Options::command(), directory).map_err(failed)
}
