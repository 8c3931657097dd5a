//! `image import|export`: the command copies the bytes itself, over a segment channel to the endpoint.
//!
//! Formats other than raw are read and written by QEMU's own programs, each confined to the one image that it works on (`tool`, `qemu`,
//! `nbd`): `decoded` reads them, `encoded` writes them. Which other files an image names is read here, first (`header`, `layers`).

mod channel;
mod decoded;
mod download;
mod draft;
mod encoded;
mod export;
mod extents;
mod failures;
mod header;
mod import;
mod interrupt;
mod layers;
mod nbd;
mod piece;
mod progress;
mod qemu;
mod raw;
mod reader;
mod restart;
mod source;
mod spool;
mod tool;
mod zeros;

use archipelago_api::client::Client;
use archipelago_protocol::Error;

use crate::options::Image;
use crate::output::Output;

pub(super) fn run(command: Image, client: &Client, output: Output) -> Result<(), Error> {
    match command {
        Image::Import(options) => import::run(&options, client, output),
        Image::Export(options) => export::run(&options, client, output),
    }
}
