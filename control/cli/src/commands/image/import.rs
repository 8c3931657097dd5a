//! `image import`: copies a file into a new image.
//!
//! Invariant: listings show the image only when it is complete. It is created hidden, written and then published; after a
//! failure, this command deletes it.

use std::ffi::OsStr;

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::types::{BeginImport, Bulk, Done, VolumeView};
use archipelago_protocol::{Error, ErrorCode, Name};
use archipelago_segment::Request;

use super::channel::Channel;
use super::interrupt::Interrupt;
use super::source::{Source, whole_sectors};
use super::{progress, zeros};
use crate::output::Output;

/// Imports `file` as the image `name` of `pool`, or of the default pool.
pub(super) fn run(
    file: &OsStr,
    name: &Name,
    pool: Option<Name>,
    client: &Client,
    output: Output,
) -> Result<(), Error> {
    let interrupt = Interrupt::new()?;
    let mut source = Source::open(file, &interrupt, output)?;
    let size = whole_sectors(source.len());
    let bulk: Bulk = client.call(
        Method::Post,
        "/v1/images",
        &BeginImport {
            name: name.clone(),
            size,
            pool,
        },
    )?;
    let path = format!("/v1/images/{}", path_segment(name.as_str()));
    let published = copy(&mut source, &bulk, &interrupt, output)
        .and_then(|()| source.check_unchanged())
        .map_err(|error| match error.code {
            ErrorCode::NoSpace => Error {
                message: format!("importing `{name}`: {}", error.message),
                ..error
            },
            _ => error,
        })
        .and_then(|()| client.call::<_, VolumeView>(Method::Post, &format!("{path}/publish"), &()));
    match published {
        Ok(view) => {
            let (len, padding) = (source.len(), size - source.len());
            if padding > 0 {
                output.note(&format!(
                    "note: {len} bytes are not a multiple of 512: {padding} zeros were appended"
                ));
            }
            output.print(&view, |_quiet| String::new())
        }
        Err(error) => {
            let removed = client.call::<_, Done>(Method::Delete, &path, &());
            if let Err(left) = removed.or_else(ignore_not_found) {
                let text = format!("note: the unfinished import `{name}` was not removed: {left}");
                output.note(&text);
            }
            Err(error)
        }
    }
}

/// The removal of an import succeeds if the import does not exist any more.
fn ignore_not_found(error: Error) -> Result<Done, Error> {
    if error.code == ErrorCode::NotFound {
        Ok(Done {})
    } else {
        Err(error)
    }
}

/// Writes the data of `source`, without its zeros, over the channel `bulk`, and has the volume closed.
fn copy(
    source: &mut Source,
    bulk: &Bulk,
    interrupt: &Interrupt,
    output: Output,
) -> Result<(), Error> {
    let mut channel = Channel::connect(bulk, interrupt)?;
    let bar = progress::known(source.len(), output);
    let mut data = vec![0; channel.buffer_len()];
    while let Some(piece) = source.next(&mut data, interrupt)? {
        for part in zeros::data_ranges(&data[..piece.len]) {
            let mut buffer = loop {
                match channel.acquire() {
                    Some(buffer) => break buffer,
                    // It comes back with its buffer.
                    None => drop(channel.wait()?),
                }
            };
            buffer.write(0, &data[part.clone()]);
            let request = Request::Write {
                offset: piece.offset + part.start as u64,
                len: u32::try_from(part.len()).expect("at most a buffer"),
                buffer,
                durable: false,
            };
            channel.submit(0, request)?;
        }
        bar.set_position(source.position());
    }
    channel.close()?;
    bar.finish_and_clear();
    Ok(())
}
