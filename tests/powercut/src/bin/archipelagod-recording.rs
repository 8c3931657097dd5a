//! `archipelagod`, whose blocker writes down what it asks of the disk. Only for tests; nothing of it is in the product.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::process::ExitCode;

use archipelago_crash_tests::node::RECORDING_VARIABLE;
use archipelago_doubles::Recording;
use archipelago_node::program;
use archipelago_protocol::{Error, ErrorCode};

fn main() -> ExitCode {
    program::run(|process| {
        archipelago_host::die_with(process.parent)?;
        let path = std::env::var_os(RECORDING_VARIABLE).ok_or_else(|| {
            let text = format!("{RECORDING_VARIABLE} must say a file");
            Error::new(ErrorCode::Invalid, text)
        })?;
        // Opened before the process confines itself: the file is none of the pool's.
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file
            .map_err(|error| Error::new(ErrorCode::Io, format!("{}: {error}", path.display())))?;
        archipelago_host::run_with(&process.roles, process.settings, |backend, _reactor| {
            // One for each data thread; what is appended by any of them is behind what was there.
            let file = file.try_clone().expect("a descriptor to spare");
            Recording::new(backend, file)
        })
    })
}
