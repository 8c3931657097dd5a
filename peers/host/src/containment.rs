//! Which faults end a data process, and which must not.
//!
//! | fault | consequence |
//! |---|---|
//! | a panic, on whatever thread | the process ends at once (SIGABRT); the daemon starts the next incarnation |
//! | an io_uring that the kernel refuses to serve | the same, with one line; the reason is reported to the daemon |
//! | a pool that another host has taken over | the same; the daemon ends too |
//! | guest memory whose file was truncated | zeros in its place; the guest's rings are broken, the process goes on |
//!
//! Peers share state, and threads wait for each other's answers: half a process is worse than a new one, which finds unfinished requests in
//! its clients' tables, journals and in-flight regions.

use std::panic::PanicHookInfo;

use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::RingFailure;

use crate::last_words;

/// Prepares this process; once, before it serves.
///
/// # Errors
/// [`ErrorCode::Internal`] if the kernel refuses the handler.
pub(crate) fn contain() -> Result<(), Error> {
    std::panic::set_hook(Box::new(end));
    xseg::guard_against_truncation().map_err(|error| {
        Error::new(
            ErrorCode::Internal,
            format!("guarding against truncated memory: {error}"),
        )
    })
}

/// The error for a refusal of io_uring: the call, the kernel's error, the remedy.
pub(crate) fn ring_failed(failure: &RingFailure) -> Error {
    if failure.is_of_threads() {
        return Error::of_thread("io_uring", failure.cause());
    }
    let text = format!("{failure}: {}", failure.cause());
    Error::new(ErrorCode::Io, text).with_hint(failure.hint())
}

fn end(panic: &PanicHookInfo<'_>) {
    if let Some(failure) = panic.payload().downcast_ref::<RingFailure>() {
        end_with(&ring_failed(failure));
    }
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    tracing::error!("thread `{name}`: {panic}; this process ends");
    last_words::report(&last_words::of_panic(name, panic));
    std::process::abort();
}

/// Ends this process at once, reporting why: for example for a pool that another host has taken over.
pub fn end_with(error: &Error) {
    let hint = if error.hint.is_empty() { "" } else { "; " };
    tracing::error!("{error}{hint}{}; this process ends", error.hint);
    last_words::report(error);
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set in the process that shall panic.
    const PANICS: &str = "ARCHIPELAGO_TEST_PANICS";

    #[test]
    fn a_panic_of_any_thread_ends_the_process() {
        if std::env::var_os(PANICS).is_some() {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .init();
            contain().unwrap();
            let thread = std::thread::Builder::new().name("a-peer".to_owned());
            let joined = thread.spawn(|| panic!("of no use")).unwrap().join();
            unreachable!("the process outlived a panic: {joined:?}");
        }
        let this = "containment::tests::a_panic_of_any_thread_ends_the_process";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(PANICS, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.signal(),
            Some(nix::sys::signal::Signal::SIGABRT as i32),
            "{text}"
        );
        assert!(
            text.contains("thread `a-peer`") && text.contains("of no use"),
            "{text}"
        );
        let error = archipelago_protocol::last_words::decode(&output.stdout).expect("last words");
        assert!(
            error.message.contains("thread `a-peer`") && error.message.contains("of no use"),
            "{error}"
        );
    }
}
