//! libFuzzer on the target that `$FUZZ_TARGET` names.
//!
//! One program for all targets: it takes minutes to build and link, and twenty of them took hours.

#![no_main]

use std::sync::LazyLock;

use archipelago_fuzz_tests::{Target, target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET=`{name}` names no target"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
