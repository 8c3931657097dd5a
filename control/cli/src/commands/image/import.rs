//! `image import`: copies a source into a new image.
//!
//! Invariant: listings show the image only when it is complete. It is created hidden, written and then published; after a
//! failure, this command deletes it, and the node deletes what a command has left that was killed.

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::types::{BeginImport, Bulk, Done, VolumeView};
use archipelago_protocol::{Error, ErrorCode, Labels, Lineage, Name};
use archipelago_segment::Request;
use serde::Serialize;

use super::channel::Channel;
use super::interrupt::Interrupt;
use super::layers::BackingFiles;
use super::reader::Reader;
use super::restart;
use super::source::Source;
use super::{download, progress, zeros};
use crate::commands::volume;
use crate::format::Format;
use crate::options::Import;
use crate::output::Output;

/// What an import says to scripts.
#[derive(Debug, Serialize)]
struct Imported {
    #[serde(flatten)]
    view: VolumeView,
    /// What the source was taken for.
    format: Format,
}

/// Imports a source as an image of the pool that was named, or of the default pool.
pub(super) fn run(options: &Import, client: &Client, output: Output) -> Result<(), Error> {
    // Too many are refused before anything is read.
    Labels::from_list(options.label.clone())?;
    let interrupt = Interrupt::new()?;
    if download::is_address(&options.file) {
        // Said before it has taken an hour.
        check_free(&options.name, client)?;
    }
    let source = Source::open(&options.file, &interrupt, output)?;
    if let Some(checksum) = &options.checksum {
        source.verify(checksum, &interrupt, output)?;
    }
    let format = format_of(&source, options.format, output)?;
    let backing = match options.backing {
        true => BackingFiles::Taken,
        false => BackingFiles::Refused,
    };
    let mut restarts = restart::Restarts::new(client, &interrupt, output);
    let mut begun = None;
    loop {
        let reader = Reader::open(&source, format, backing, &interrupt)?;
        let (len, size) = (reader.len(), reader.size());
        match attempt(reader, options, &mut begun, client, &interrupt, output) {
            Ok(view) => {
                if size > len {
                    output.note(&format!(
                        "note: {len} bytes are not a multiple of 512: {} zeros were appended",
                        size - len
                    ));
                }
                return output.print(&Imported { view, format }, |_quiet| String::new());
            }
            Err(error) => restarts.wait(error)?,
        }
    }
}

/// One try, of all of it; `begun` is the id of what the one before has begun.
fn attempt(
    mut reader: Reader<'_>,
    options: &Import,
    begun: &mut Option<Lineage>,
    client: &Client,
    interrupt: &Interrupt,
    output: Output,
) -> Result<VolumeView, Error> {
    let name = &options.name;
    let begin = BeginImport {
        name: name.clone(),
        size: reader.size(),
        pool: options.pool.clone(),
        object_size: options.object_size,
        labels: Labels::from_list(options.label.clone())?,
    };
    let bulk: Bulk = match client.call(Method::Post, "/v1/images", &begin) {
        Err(error) if error.code == ErrorCode::Exists => {
            // A node that ended when it had published the image, and not said so.
            let there = client.get::<VolumeView>(&volume::path(name, "")).ok();
            let ours = there.filter(|view| Some(view.entry.lineage) == *begun);
            return ours.ok_or(error);
        }
        answer => answer?,
    };
    *begun = Some(bulk.lineage);
    let path = format!("/v1/images/{}", path_segment(name.as_str()));
    // Another command may get the name when this one seems to be gone.
    let which = format!("lineage={}", bulk.lineage);
    let published = copy(&mut reader, &bulk, interrupt, output)
        .and_then(|()| reader.check_unchanged())
        .map_err(|error| match error.code {
            ErrorCode::NoSpace => Error {
                message: format!("importing `{name}`: {}", error.message),
                ..error
            },
            _ => error,
        })
        .and_then(|()| {
            let path = format!("{path}/publish?{which}");
            client.call::<_, VolumeView>(Method::Post, &path, &())
        });
    if let Err(error) = &published {
        let removed = client.call::<_, Done>(Method::Delete, &format!("{path}?{which}"), &());
        if let Err(left) = removed.or_else(ignore_not_found)
            && !restart::is_absence(error)
        {
            let text = format!("note: the unfinished import `{name}` was not removed: {left}");
            output.note(&text);
        }
    }
    published
}

/// What to take the source for; says so if nobody has.
fn format_of(source: &Source, given: Option<Format>, output: Output) -> Result<Format, Error> {
    if let Some(format) = given {
        return Ok(format);
    }
    let title = source.title();
    let format = Format::detect(source.file(), source.len())
        .map_err(|error| super::failures::read_error(title, &error))?;
    if format != Format::Raw {
        output.note(&format!(
            "note: {title} looks like {}, and is read as such; --format raw imports it unchanged",
            format.name()
        ));
    }
    Ok(format)
}

/// Refuses a name that is taken.
fn check_free(name: &Name, client: &Client) -> Result<(), Error> {
    match client.get::<VolumeView>(&volume::path(name, "")) {
        Ok(_) => Err(
            Error::new(ErrorCode::Exists, format!("the name `{name}` is taken"))
                .with_hint("choose another name"),
        ),
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        Err(error) => Err(error),
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

/// Writes the data of `reader`, without its zeros, over the channel `bulk`, and has the volume closed.
fn copy(
    reader: &mut Reader<'_>,
    bulk: &Bulk,
    interrupt: &Interrupt,
    output: Output,
) -> Result<(), Error> {
    let mut channel = Channel::connect(bulk, interrupt)?;
    let bar = progress::known(reader.len(), output);
    let mut data = vec![0; channel.buffer_len()];
    while let Some(piece) = reader.next(&mut data, interrupt)? {
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
        bar.set_position((piece.offset + piece.len as u64).min(reader.len()));
    }
    channel.close()?;
    bar.finish_and_clear();
    Ok(())
}
