//! `ganeti ...`: this process becomes the program `archipelago-ganeti`, which Ganeti calls under other names.

use std::os::unix::process::CommandExt;

use archipelago_api::layout::Layout;
use archipelago_protocol::{Error, ErrorCode};

use super::program;
use crate::options::Ganeti;
use crate::output::Output;

pub(super) fn run(command: Ganeti, layout: &Layout, output: Output) -> Result<(), Error> {
    let mut program = program::named("archipelago-ganeti");
    if let Some(root) = layout.root() {
        program.arg("--root").arg(root);
    }
    if output.is_json() {
        program.arg("--json");
    }
    let (name, options) = match command {
        Ganeti::Install {
            dir,
            log_dir,
            qemu,
            ganeti_state,
        } => (
            "install",
            vec![
                ("--dir", dir),
                ("--log-dir", log_dir),
                ("--qemu", qemu),
                ("--ganeti-state", ganeti_state),
            ],
        ),
        Ganeti::Uninstall { dir } => ("uninstall", vec![("--dir", dir)]),
        Ganeti::Check { dir, log_dir } => ("check", vec![("--dir", dir), ("--log-dir", log_dir)]),
    };
    program.arg(name);
    for (option, path) in options {
        if let Some(path) = path {
            program.arg(option).arg(path);
        }
    }
    let error = program.exec();
    let message = format!("starting archipelago-ganeti: {error}");
    Err(Error::new(ErrorCode::Unavailable, message)
        .with_hint("it belongs beside the archipelago command"))
}
