//! Arguments of QEMU's command line: options with one or two dashes, and the value after them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Whether `argument` is the option `name`.
pub(super) fn is_option(argument: &OsStr, name: &str) -> bool {
    let bytes = argument.as_bytes();
    let name = name.as_bytes();
    bytes.strip_prefix(b"--") == Some(name) || bytes.strip_prefix(b"-") == Some(name)
}

/// Positions of the values of the options `name`.
pub(super) fn positions_of<'a>(
    arguments: &'a [OsString],
    name: &'a str,
) -> impl Iterator<Item = usize> + 'a {
    let at = arguments.iter().enumerate();
    let at = at.filter(move |(_, argument)| is_option(argument, name));
    at.map(|(at, _)| at + 1).filter(|at| *at < arguments.len())
}

/// Values of the options `name`.
pub(super) fn values_of<'a>(
    arguments: &'a [OsString],
    name: &'a str,
) -> impl DoubleEndedIterator<Item = &'a OsString> + 'a {
    let pairs = arguments.windows(2);
    pairs.filter_map(move |pair| match pair {
        [option, value] if is_option(option, name) => Some(value),
        _ => None,
    })
}
