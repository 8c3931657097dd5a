//! `image import|export`: the command copies the bytes itself, over a segment channel to the endpoint.

mod export;
mod import;
mod interrupt;
mod source;
mod zeros;

use archipelago_api::client::Client;
use archipelago_protocol::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::options::Image;
use crate::output::Output;

pub(super) fn run(command: Image, client: &Client, output: Output) -> Result<(), Error> {
    match command {
        Image::Import { file, name, pool } => import::run(&file, &name, pool, client, output),
        Image::Export { name, file } => export::run(&name, &file, client, output),
    }
}

/// How much has come from a source whose end nobody knows, shown as [`progress`] shows it.
fn arrival(output: Output) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {bytes} {binary_bytes_per_sec}")
        .unwrap_or_else(|_our_mistake| ProgressStyle::default_spinner());
    ProgressBar::with_draw_target(None, target(output)).with_style(style)
}

/// A bar on the standard error if that is a terminal, else nothing.
fn progress(size: u64, output: Output) -> ProgressBar {
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
