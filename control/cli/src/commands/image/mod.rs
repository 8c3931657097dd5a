//! `image import|export`: the command copies the bytes itself, over a segment channel to the endpoint.

mod channel;
mod export;
mod extents;
mod import;
mod interrupt;
mod progress;
mod source;
mod zeros;

use archipelago_api::client::Client;
use archipelago_protocol::Error;

use crate::options::Image;
use crate::output::Output;

pub(super) fn run(command: Image, client: &Client, output: Output) -> Result<(), Error> {
    match command {
        Image::Import { file, name, pool } => import::run(&file, &name, pool, client, output),
        Image::Export { name, file } => export::run(&name, &file, client, output),
    }
}
