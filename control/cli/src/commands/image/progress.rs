//! Bars that show how much of an image has been copied.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Shows how much has come from a source of unknown length, as [`known`] does.
pub(super) fn arrival(output: Output) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {bytes} {binary_bytes_per_sec}")
        .unwrap_or_else(|_our_mistake| ProgressStyle::default_spinner());
    ProgressBar::with_draw_target(None, target(output)).with_style(style)
}

/// A bar on the standard error if that is a terminal, else nothing.
pub(super) fn known(size: u64, output: Output) -> ProgressBar {
    let template = "{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_our_mistake| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(size), target(output)).with_style(style)
}

fn target(output: Output) -> ProgressDrawTarget {
    if output.is_json() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    }
}
