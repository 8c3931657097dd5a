//! `image import|export`: the command copies the bytes itself, over a segment channel to the endpoint.

mod export;
mod import;
mod interrupt;
mod source;
mod zeros;

use archipelago_node::client::Client;
use archipelago_protocol::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::options::Image;
use crate::output::Output;

pub(super) fn run(command: Image, client: &Client, output: Output) -> Result<(), Error> {
    match command {
        Image::Import { file, name } => import::run(&file, &name, client, output),
        Image::Export { name, file } => export::run(&name, &file, client, output),
    }
}

/// A bar on the standard error if that is a terminal, else nothing.
fn progress(size: u64, output: Output) -> ProgressBar {
    let target = if output.is_json() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let template = "{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_our_mistake| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(size), target).with_style(style)
}
