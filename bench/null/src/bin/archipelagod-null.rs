//! `archipelagod`, whose volumes have no data. Only for measurements; nothing of it is in the product.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use archipelago_bench_null::NullData;
use archipelago_node::program;

fn main() -> ExitCode {
    program::run(|process| {
        archipelago_host::die_with(process.parent)?;
        let wrap = |backend, _reactor: &_| NullData::new(backend);
        archipelago_host::run_with(&process.roles, process.settings, wrap)
    })
}
