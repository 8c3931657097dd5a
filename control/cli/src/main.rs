//! The `archipelago` command: parse, run, print, exit with the code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use archipelago_cli::commands;
use archipelago_cli::options::Options;
use archipelago_cli::output::Output;
use archipelago_protocol::{Error, ErrorCode};
use clap::Parser;
use clap::error::ErrorKind;
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    let_owner_use_files();
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    let output = Output::new(options.json);
    match commands::run(options, output) {
        Ok(code) => code,
        Err(error) => {
            output.fail(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// Takes the owner's own rights out of the inherited umask, so that files made here can be read and written by their owner. The rights of
/// others follow the umask.
fn let_owner_use_files() {
    let inherited = umask(Mode::empty());
    umask(inherited.difference(Mode::S_IRWXU));
}

/// A command line that does not parse, or a request for help.
fn usage(error: &clap::Error) -> ExitCode {
    let help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if !help && std::env::args_os().any(|argument| argument == "--json") {
        Output::new(true).fail(&usage_error(&error.render().to_string()));
    } else {
        // If the reader of the output has closed it, the exit code is still that of the error.
        let _printed = error.print();
    }
    ExitCode::from(if help {
        0
    } else {
        ErrorCode::Invalid.exit_code()
    })
}

/// The text that `clap` prints, as an error for scripts: its first paragraph, with its tips and its usage as the hint.
fn usage_error(text: &str) -> Error {
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ")
    });
    let message = paragraphs.next().unwrap_or_default();
    let message = message.trim_start_matches("error: ");
    let next: Vec<String> = paragraphs
        .filter(|paragraph| paragraph.starts_with("tip:") || paragraph.starts_with("Usage:"))
        .collect();
    let hint = if next.is_empty() {
        "archipelago --help".to_owned()
    } else {
        next.join("; ")
    };
    Error::new(ErrorCode::Invalid, message).with_hint(hint)
}
