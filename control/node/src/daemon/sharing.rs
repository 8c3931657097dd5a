//! Which attachments of one volume may exist together, and which of them a request selects.
//!
//! | attached | requested | |
//! |---|---|---|
//! | anything | what exists already | that attachment |
//! | nothing | anything that the volume allows | created |
//! | read-only, once or more often | read-only: another kind, or `another` | created |
//! | read-only | read-only: this kind with other queues | refused: the same again, or another one? |
//! | read-only | read-write | refused: a writer is alone |
//! | read-write | anything else | refused: a writer is alone |
//!
//! Snapshots and images never change, so their readers need not know of each other. A volume that is only attached read-only does not
//! change either. Why a reader and a writer exclude each other: `docs/decisions/0014-no-reader-beside-a-writer.md`.

use archipelago_api::types::{AttachVolume, Attachment, DetachVolume, EndpointKind};
use archipelago_protocol::catalogue::{Entry, Kind};
use archipelago_protocol::{EndpointSpec, Error, ErrorCode, Name};

/// The result of a request to attach.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// This attachment is what was requested.
    Present(Attachment),
    /// A further attachment must be created.
    Further {
        /// It refuses writes.
        read_only: bool,
    },
}

/// The result of `request` for `entry`, which has the attachments `present`; `command` is used in hints.
///
/// # Errors
/// [`ErrorCode::InUse`] if it cannot exist together with those, [`ErrorCode::Invalid`] for a writer of a snapshot or image.
pub(crate) fn share(
    entry: &Entry,
    present: &[Attachment],
    request: &AttachVolume,
    command: &str,
) -> Result<Sharing, Error> {
    let name = &entry.name;
    if !request.another
        && let Some(same) = present.iter().find(|one| is_same(one, request))
    {
        return Ok(Sharing::Present(same.clone()));
    }
    let is_frozen = entry.kind != Kind::Volume;
    let read_only = request.read_only.unwrap_or(is_frozen);
    if is_frozen && !read_only {
        let message = format!("`{name}` is frozen: it is attached only read-only");
        return Err(Error::new(ErrorCode::Invalid, message).with_hint(format!(
            "or attach a clone of it: `{command} volume clone {name} NAME`"
        )));
    }
    let writer = present.iter().find(|one| !one.read_only);
    let kind = request.kind.unwrap_or(EndpointKind::VhostUser);
    let of_kind = |one: &&Attachment| kind.includes(&one.endpoint);
    let detach_first = format!("detach it first: `{command} volume detach {name}`");
    let (in_the_way, hint) = match (writer, present.first()) {
        (Some(writer), _) if read_only => {
            let message = format!(
                "{}: the volume would change while it is read",
                described(writer)
            );
            let hint = format!("attach a snapshot of it: `{command} volume snapshot {name} NAME`");
            return Err(Error::new(ErrorCode::InUse, message).with_hint(hint));
        }
        (Some(writer), _) => (Some(writer), detach_first),
        (None, Some(reader)) if !read_only => (Some(reader), detach_first),
        (None, _) if !request.another => (
            present.iter().find(of_kind),
            format!("{detach_first}; or use --another to add an attachment"),
        ),
        (None, _) => (None, String::new()),
    };
    match in_the_way {
        None => Ok(Sharing::Further { read_only }),
        Some(one) => Err(Error::new(ErrorCode::InUse, described(one)).with_hint(hint)),
    }
}

/// Whether `attachment` has all the options of `request`.
fn is_same(attachment: &Attachment, request: &AttachVolume) -> bool {
    let endpoint = &attachment.endpoint;
    let kind = request.kind.unwrap_or(EndpointKind::of(endpoint));
    let has_queues = match endpoint {
        EndpointSpec::VhostUser { queues, .. } => {
            request.queues.is_none_or(|asked| asked == *queues)
        }
        _ => request.queues.is_none(),
    };
    kind.includes(endpoint)
        && has_queues
        && request
            .read_only
            .is_none_or(|asked| asked == attachment.read_only)
}

fn described(attachment: &Attachment) -> String {
    let mode = match attachment.read_only {
        true => "read-only",
        false => "read-write",
    };
    let queues = match &attachment.endpoint {
        EndpointSpec::VhostUser { queues, .. } => format!(", queues: {queues}"),
        _ => String::new(),
    };
    format!(
        "`{}` is attached already, by {}, {mode}{queues}",
        attachment.name,
        attachment.endpoint.kind()
    )
}

/// The attachment of `attached`, all of `name`, that `request` selects.
///
/// # Errors
/// [`ErrorCode::NotFound`] if none is selected, [`ErrorCode::Invalid`] if more than one is.
pub(crate) fn select_for_detach(
    name: &Name,
    attached: &[Attachment],
    request: &DetachVolume,
    command: &str,
) -> Result<Attachment, Error> {
    let means: Vec<&Attachment> = attached.iter().filter(|one| request.means(one)).collect();
    match (means.as_slice(), attached) {
        ([one], _) => Ok((*one).clone()),
        ([], attached) => {
            let message = match attached {
                [] => format!("`{name}` is not attached"),
                _ => format!("`{name}` is not attached like that"),
            };
            Err(Error::new(ErrorCode::NotFound, message)
                .with_hint(format!("`{command} volume attachments` shows what is")))
        }
        (several, _) => {
            let ids: Vec<String> = several.iter().map(|one| one.id.to_string()).collect();
            let message = format!("`{name}` is attached {} times", several.len());
            Err(Error::new(ErrorCode::Invalid, message).with_hint(format!(
                "select one with --id {}; `{command} volume attachments {name}` shows them",
                ids.join(" or --id ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use archipelago_protocol::{AttachmentId, Labels, Lineage, ObjectSize, OnFull};

    use super::*;

    fn entry(kind: Kind) -> Entry {
        Entry {
            name: "v".parse().unwrap(),
            kind,
            lineage: Lineage(7),
            size: 4096,
            object_size: ObjectSize::DEFAULT,
            parent: None,
            created: 0,
            on_full: OnFull::Report,
            labels: Labels::default(),
        }
    }

    fn attachment(id: u64, kind: EndpointKind, read_only: bool) -> Attachment {
        let socket = PathBuf::from(format!("/run/{id}"));
        Attachment {
            id: AttachmentId(id),
            pool: None,
            name: "v".parse().unwrap(),
            lineage: Lineage(7),
            read_only,
            endpoint: match kind {
                EndpointKind::VhostUser => EndpointSpec::VhostUser { socket, queues: 2 },
                EndpointKind::Nbd => EndpointSpec::Nbd {
                    socket,
                    export: "v".to_owned(),
                },
                EndpointKind::Fuse => EndpointSpec::Fuse { file: socket },
                EndpointKind::Ublk => EndpointSpec::Ublk {
                    device: 0,
                    path: socket,
                },
                EndpointKind::Block => EndpointSpec::NbdDevice {
                    device: 0,
                    path: socket,
                    socket: PathBuf::from("/socket"),
                },
            },
        }
    }

    fn asked(kind: Option<EndpointKind>, read_only: Option<bool>, another: bool) -> AttachVolume {
        AttachVolume {
            kind,
            read_only,
            another,
            ..AttachVolume::default()
        }
    }

    #[test]
    fn readers_share_a_volume_and_a_writer_is_alone() {
        use EndpointKind::{Nbd, VhostUser};
        let [volume, snapshot, image] = [Kind::Volume, Kind::Snapshot, Kind::Image].map(entry);
        let reader = || attachment(1, VhostUser, true);
        let nbd_reader = || attachment(2, Nbd, true);
        let writer = || attachment(3, VhostUser, false);
        let nothing: &[Attachment] = &[];
        let further = |read_only| Ok(Sharing::Further { read_only });
        let present = |one| Ok(Sharing::Present(one));
        let in_use = || Err(ErrorCode::InUse);
        let check = |entry: &Entry, attached: &[Attachment], request, expected| {
            let found = share(entry, attached, &request, "c").map_err(|error| error.code);
            assert_eq!(found, expected, "{entry:?} {attached:?} {request:?}");
        };
        check(&volume, nothing, asked(None, None, false), further(false));
        check(
            &volume,
            nothing,
            asked(Some(Nbd), Some(true), true),
            further(true),
        );
        check(
            &volume,
            &[writer()],
            asked(None, None, false),
            present(writer()),
        );
        for another in [false, true] {
            for kind in [None, Some(Nbd), Some(VhostUser)] {
                let reads = asked(kind, Some(true), another);
                check(&volume, &[writer()], reads, in_use());
                let writes = asked(kind, Some(false), another);
                check(&volume, &[reader()], writes.clone(), in_use());
                if another || kind == Some(Nbd) {
                    check(&volume, &[writer()], writes.clone(), in_use());
                }
                check(&snapshot, nothing, writes.clone(), Err(ErrorCode::Invalid));
                check(&image, &[reader()], writes, Err(ErrorCode::Invalid));
            }
        }
        let both = [reader(), nbd_reader()];
        for frozen in [&snapshot, &image] {
            check(frozen, nothing, asked(None, None, false), further(true));
            check(
                frozen,
                &[reader()],
                asked(None, None, false),
                present(reader()),
            );
            check(
                frozen,
                &[reader()],
                asked(Some(Nbd), None, false),
                further(true),
            );
            check(
                frozen,
                &both,
                asked(Some(Nbd), None, false),
                present(nbd_reader()),
            );
            check(frozen, &both, asked(Some(Nbd), None, true), further(true));
            check(frozen, &both, asked(None, None, true), further(true));
        }
        check(
            &volume,
            &[reader()],
            asked(Some(Nbd), Some(true), false),
            further(true),
        );
        // A block device is one, by whatever means.
        for kind in [EndpointKind::Ublk, EndpointKind::Block] {
            let device = || attachment(4, kind, false);
            let block = asked(Some(EndpointKind::Block), None, false);
            check(&volume, &[device()], block, present(device()));
        }
        let other_queues = AttachVolume {
            queues: Some(3),
            ..AttachVolume::default()
        };
        check(&snapshot, &[reader()], other_queues, in_use());
    }

    #[test]
    fn a_detach_says_which_of_several_it_means() {
        let name: Name = "v".parse().unwrap();
        let all = [
            attachment(1, EndpointKind::VhostUser, true),
            attachment(2, EndpointKind::Nbd, true),
            attachment(3, EndpointKind::Nbd, true),
        ];
        let check = |attached: &[Attachment], request: DetachVolume, expected| {
            let found = select_for_detach(&name, attached, &request, "c");
            let found = found.map(|one| one.id.0).map_err(|error| error.code);
            assert_eq!(found, expected, "{request:?}");
        };
        let id = |id| DetachVolume {
            id: Some(AttachmentId(id)),
            ..DetachVolume::default()
        };
        let kind = |kind| DetachVolume {
            kind: Some(kind),
            ..DetachVolume::default()
        };
        let path = |path: &str| DetachVolume {
            path: Some(PathBuf::from(path)),
            ..DetachVolume::default()
        };
        check(&[], DetachVolume::default(), Err(ErrorCode::NotFound));
        check(&all[1..2], DetachVolume::default(), Ok(2));
        check(&all, DetachVolume::default(), Err(ErrorCode::Invalid));
        check(&all, id(3), Ok(3));
        check(&all, id(4), Err(ErrorCode::NotFound));
        check(&all, kind(EndpointKind::VhostUser), Ok(1));
        check(&all, kind(EndpointKind::Nbd), Err(ErrorCode::Invalid));
        check(&all, path("/run/2"), Ok(2));
        let both = DetachVolume {
            kind: Some(EndpointKind::Nbd),
            ..id(1)
        };
        check(&all, both, Err(ErrorCode::NotFound));
    }
}
