//! `nbd serve`: this process becomes the program `archipelago-nbd-tcp`, so that signals reach it and its exit code is the command's.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use archipelago_api::layout::Layout;
use archipelago_protocol::{Error, ErrorCode};

use super::program;
use crate::options::ServeNbd;
use crate::output::Output;

pub(super) fn serve(options: ServeNbd, layout: &Layout, output: Output) -> Result<(), Error> {
    let mut command = program::named("archipelago-nbd-tcp");
    if let Some(root) = layout.root() {
        command.arg("--root").arg(root);
    }
    for (flag, given) in [
        ("--json", output.is_json()),
        ("--read-only", options.read_only),
        ("--insecure", options.insecure),
    ] {
        if given {
            command.arg(flag);
        }
    }
    for (option, file) in [
        ("--listen", options.listen.map(PathBuf::from)),
        ("--socket", options.socket),
        ("--tls-certificate", options.tls_certificate),
        ("--tls-key", options.tls_key),
        ("--tls-client-ca", options.tls_client_ca),
    ] {
        if let Some(file) = file {
            command.arg(option).arg(file);
        }
    }
    let names = options.names.iter().map(ToString::to_string);
    let error = command.arg("--").args(names).exec();
    let message = format!("starting archipelago-nbd-tcp: {error}");
    Err(Error::new(ErrorCode::Unavailable, message)
        .with_hint("it belongs beside the archipelago command"))
}
