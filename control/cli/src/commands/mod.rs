//! What each command does.

mod diff;
mod doctor;
mod ganeti;
mod image;
mod mount;
mod nbd;
mod node;
mod pool;
mod program;
mod shell;
mod status;
mod volume;

use std::process::ExitCode;

use archipelago_api::client::Client;
use archipelago_api::config::{InitOptions, init};
use archipelago_api::layout::Layout;
use archipelago_api::types::Done;
use archipelago_protocol::{Error, ErrorCode};
use serde::Serialize;

use crate::options::{Command, Init, Nbd, Options};
use crate::output::Output;

/// Runs the command of `options`. Returns the exit code, which is not 0 if a check found damage.
///
/// # Errors
/// Why the command failed; the error's code determines the exit code.
pub fn run(options: Options, output: Output) -> Result<ExitCode, Error> {
    match &options.command {
        Command::Completions { shell } => {
            return shell::completions(*shell).map(|()| ExitCode::SUCCESS);
        }
        Command::Man { directory } => {
            return shell::manual(directory).map(|()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let layout = Layout::new(options.root().as_deref())?;
    let client = Client::new(layout.clone()).explaining(program::explain_absence);
    match options.command {
        Command::Init(options) => initialise(&layout, options, output),
        Command::Node(command) => node::run(command, &layout, &client, output),
        Command::Pool(command) => pool::run(command, &client, output),
        Command::Volume(command) => volume::run(command, &client, output),
        Command::Image(command) => image::run(command, &client, output),
        Command::Mount(options) => mount::mount(&options, &layout, output),
        Command::Umount { directory } => mount::umount(&directory, output),
        Command::Nbd(Nbd::Serve(options)) => nbd::serve(options, &layout, output),
        Command::Ganeti(command) => ganeti::run(command, &layout, output),
        Command::Doctor(options) => {
            return doctor::run(&options, &layout, &client, output);
        }
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn initialise(layout: &Layout, options: Init, output: Output) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Made<'a> {
        config: &'a std::path::Path,
        pool_dir: std::path::PathBuf,
        placement: String,
    }
    let options = InitOptions {
        pool_dir: options.pool_dir,
        placement: options.placement,
    };
    let config = init(layout, &options, |directory| {
        let directory = directory.to_str().ok_or_else(|| {
            let message = format!("pool directory `{}` is not UTF-8", directory.display());
            Error::new(ErrorCode::Invalid, message)
        })?;
        program::ask::<Done>(layout, &["make-pool", directory]).map(|Done {}| ())
    })?;
    let pool = &config.pools[config.default_pool()?];
    let made = Made {
        config: layout.config(),
        pool_dir: pool.place(),
        placement: config.placement.to_string(),
    };
    output.print(&made, |made| {
        let (config, pool) = (made.config.display(), made.pool_dir.display());
        format!(
            "configuration {config}, pool `default` in {pool}\nnext: {} node start",
            layout.command()
        )
    })
}
