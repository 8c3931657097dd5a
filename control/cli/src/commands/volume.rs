//! `volume ...`: each is one request to the daemon, a listing one for each page.

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::types::{
    AttachVolume, Attachment, AttachmentView, CloneVolume, CreateVolume, DetachVolume, Done,
    EndpointKind, NodeStatus, PoolAbsence, RenameVolume, ResizeVolume, RollbackVolume, SetVolume,
    SnapshotVolume, VolumePage, VolumeView,
};
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::usage::Usage;
use archipelago_protocol::{
    AttachmentId, EndpointSpec, Error, LabelChanges, LabelFilter, Labels, Name,
};
use serde::Serialize;

use super::diff;
use crate::options::Volume;
use crate::output::{Output, Table, date, facts, kind_name, tree};
use crate::size::human;

/// Everything that has a name.
#[derive(Debug, Serialize)]
struct VolumeList {
    volumes: Vec<VolumeView>,
    /// Pools whose volumes are not among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unlisted: Vec<PoolAbsence>,
}

/// What is attached.
#[derive(Debug, Serialize)]
struct AttachmentList {
    attachments: Vec<AttachmentView>,
}

/// One of them, with the space that it takes.
#[derive(Debug, Serialize)]
struct VolumeInfo {
    #[serde(flatten)]
    view: VolumeView,
    #[serde(flatten)]
    space: Space,
}

/// What something takes of its pool.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Space {
    Known { usage: Usage },
    Unknown { usage_unknown: String },
}

impl VolumeInfo {
    fn new(view: VolumeView, usage: Result<Usage, Error>) -> VolumeInfo {
        let space = match usage {
            Ok(usage) => Space::Known { usage },
            Err(error) => Space::Unknown {
                usage_unknown: error.message,
            },
        };
        VolumeInfo { view, space }
    }
}

pub(super) fn run(command: Volume, client: &Client, output: Output) -> Result<(), Error> {
    match command {
        Volume::Create {
            name,
            size,
            pool,
            object_size,
            on_full,
            label,
        } => {
            let body = CreateVolume {
                name,
                size,
                pool,
                object_size,
                on_full,
                labels: Labels::from_list(label)?,
            };
            made(client.call(Method::Post, "/v1/volumes", &body)?, output)
        }
        Volume::Snapshot {
            volume,
            name,
            label,
        } => {
            let body = SnapshotVolume {
                name,
                labels: Labels::from_list(label)?,
            };
            let path = path(&volume, "/snapshot");
            made(client.call(Method::Post, &path, &body)?, output)
        }
        Volume::Clone {
            source,
            name,
            size,
            on_full,
            label,
        } => {
            let body = CloneVolume {
                name,
                size,
                on_full,
                labels: Labels::from_list(label)?,
            };
            let path = path(&source, "/clone");
            made(client.call(Method::Post, &path, &body)?, output)
        }
        Volume::List {
            tree: as_tree,
            label,
        } => {
            let list = list(client, label.as_ref())?;
            for absence in &list.unlisted {
                output.note(&format!(
                    "note: what pool `{}` holds is not listed: {}",
                    absence.pool, absence.reason
                ));
            }
            output.print(&list, |list| {
                if as_tree {
                    tree(&list.volumes)
                } else {
                    table(&list.volumes)
                }
            })
        }
        Volume::Info { name } => {
            let view: VolumeView = client.get(&path(&name, ""))?;
            let usage: Result<Usage, Error> = client.get(&path(&name, "/usage"));
            output.print(&VolumeInfo::new(view, usage), info)
        }
        Volume::Diff { name, from } => {
            diff::run(&path(&name, "/diff"), from.as_ref(), client, output)
        }
        Volume::Resize { name, size, force } => made(
            client.call(
                Method::Post,
                &path(&name, "/resize"),
                &ResizeVolume { size, force },
            )?,
            output,
        ),
        Volume::Set {
            name,
            labels,
            unset,
            on_full,
        } => {
            let mut changes = LabelChanges::default();
            for label in labels {
                changes.set(label)?;
            }
            for key in unset {
                changes.unset(key)?;
            }
            let body = SetVolume {
                on_full,
                labels: changes,
            };
            let path = path(&name, "/set");
            made(client.call(Method::Post, &path, &body)?, output)
        }
        Volume::Rename { old, new, pool } => {
            let body = RenameVolume { to: new, pool };
            made(
                client.call(Method::Post, &path(&old, "/rename"), &body)?,
                output,
            )
        }
        Volume::Rollback { name, snapshot } => {
            let path = path(&name, "/rollback");
            let body = RollbackVolume { snapshot };
            made(client.call(Method::Post, &path, &body)?, output)
        }
        Volume::Remove { name } => {
            done(client.call(Method::Delete, &path(&name, ""), &())?, output)
        }
        Volume::Attach {
            name,
            vhost_user,
            nbd,
            ublk,
            fuse,
            block,
            queues,
            read_only,
            another,
        } => {
            let body = AttachVolume {
                kind: kind([vhost_user, nbd, ublk, fuse, block]),
                queues,
                read_only: read_only.then_some(true),
                another,
            };
            let attachment: Attachment =
                client.call(Method::Post, &path(&name, "/attach"), &body)?;
            output.print(&attachment, |attachment| {
                attachment.endpoint.path().display().to_string()
            })
        }
        Volume::Detach {
            name,
            id,
            vhost_user,
            nbd,
            ublk,
            fuse,
            block,
            at,
        } => {
            let body = DetachVolume {
                id: id.map(AttachmentId),
                kind: kind([vhost_user, nbd, ublk, fuse, block]),
                path: at,
            };
            done(
                client.call(Method::Post, &path(&name, "/detach"), &body)?,
                output,
            )
        }
        Volume::Attachments { name } => {
            let status: NodeStatus = client.get("/v1/node/status")?;
            let mut attachments = status.attachments;
            if let Some(name) = &name {
                // A name that there is not is an error, not an empty list.
                let view: VolumeView = client.get(&path(name, ""))?;
                attachments.retain(|one| one.attachment.lineage == view.entry.lineage);
            }
            output.print(&AttachmentList { attachments }, |list| {
                attachment_table(&list.attachments)
            })
        }
    }
}

/// The kind that was asked for, by one option of each.
fn kind(asked: [bool; 5]) -> Option<EndpointKind> {
    let kinds = [
        EndpointKind::VhostUser,
        EndpointKind::Nbd,
        EndpointKind::Ublk,
        EndpointKind::Fuse,
        EndpointKind::Block,
    ];
    let mut kinds = asked.into_iter().zip(kinds);
    kinds.find_map(|(asked, kind)| asked.then_some(kind))
}

/// Path of what is done to `name`.
pub(super) fn path(name: &Name, action: &str) -> String {
    format!("/v1/volumes/{}{action}", path_segment(name.as_str()))
}

fn made(view: VolumeView, output: Output) -> Result<(), Error> {
    output.print(&view, |_quiet| String::new())
}

fn done(done: Done, output: Output) -> Result<(), Error> {
    output.print(&done, |_quiet| String::new())
}

fn list(client: &Client, label: Option<&LabelFilter>) -> Result<VolumeList, Error> {
    let mut list = VolumeList {
        volumes: Vec::new(),
        unlisted: Vec::new(),
    };
    let query = label.map_or_else(String::new, |label| {
        format!("label={}", path_segment(&label.to_string()))
    });
    let mut after = String::new();
    loop {
        let page: VolumePage = client.get(&format!("/v1/volumes?{query}{after}"))?;
        list.volumes.extend(page.volumes);
        for absence in page.unlisted {
            if !list.unlisted.iter().any(|known| known.pool == absence.pool) {
                list.unlisted.push(absence);
            }
        }
        match page.next {
            None => return Ok(list),
            Some(last) => after = format!("&after={}", path_segment(last.as_str())),
        }
    }
}

fn parent(view: &VolumeView) -> String {
    view.entry
        .parent
        .as_ref()
        .map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn table(volumes: &[VolumeView]) -> String {
    // Only what has labels needs a column for them; behind the others, where long ones disturb nobody.
    let labelled = volumes.iter().any(|view| !view.entry.labels.is_empty());
    let labels = |labels: &Labels| match labels.is_empty() {
        true => "-".to_owned(),
        false => labels.to_string(),
    };
    let mut table = Table::new(&[
        "NAME",
        "POOL",
        "KIND",
        "SIZE",
        "PARENT",
        "ATTACHED",
        "CREATED",
        if labelled { "LABELS" } else { "" },
    ]);
    for view in volumes {
        let attached = match view.attachments.as_slice() {
            [] => "-".to_owned(),
            [one] if !one.read_only => "yes".to_owned(),
            [_] => "read-only".to_owned(),
            several => format!("read-only, {} times", several.len()),
        };
        table.row([
            view.entry.name.to_string(),
            view.pool.to_string(),
            kind_name(view.entry.kind).to_owned(),
            human(view.entry.size),
            parent(view),
            attached,
            date(view.entry.created),
            if labelled {
                labels(&view.entry.labels)
            } else {
                String::new()
            },
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

fn attachment_table(attachments: &[AttachmentView]) -> String {
    let mut table = Table::new(&["NAME", "ID", "POOL", "KIND", "ACCESS", "STATE", "PATH"]);
    for AttachmentView { attachment, state } in attachments {
        let pool = attachment.pool.as_ref();
        table.row([
            attachment.name.to_string(),
            attachment.id.to_string(),
            pool.map_or("-", |pool| pool.as_str()).to_owned(),
            attachment.endpoint.kind().to_owned(),
            match attachment.read_only {
                true => "read-only",
                false => "read-write",
            }
            .to_owned(),
            state.text().to_owned(),
            attachment.endpoint.path().display().to_string(),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

fn info(info: &VolumeInfo) -> String {
    let VolumeInfo { view, space } = info;
    let entry = &view.entry;
    let mut rows = vec![
        ("name", entry.name.to_string()),
        ("kind", kind_name(entry.kind).to_owned()),
        (
            "size",
            format!("{} ({} bytes)", human(entry.size), entry.size),
        ),
        ("object size", human(entry.object_size.bytes())),
        ("pool", view.pool.to_string()),
        ("parent", parent(view)),
        ("on full", entry.on_full.to_string()),
        ("lineage", entry.lineage.to_string()),
        ("created", date(entry.created)),
    ];
    rows.extend(space_rows(space, entry.kind));
    let labels = entry.labels.iter();
    rows.extend(labels.map(|(key, value)| ("label", format!("{key}={value}"))));
    if view.attachments.is_empty() {
        rows.push(("attached", "no".to_owned()));
    }
    for attachment in &view.attachments {
        let mode = if attachment.read_only {
            "read-only"
        } else {
            "read-write"
        };
        let kind = attachment.endpoint.kind();
        rows.push(match &attachment.endpoint {
            EndpointSpec::VhostUser { queues, .. } => {
                ("attached", format!("{kind}, {mode}, queues: {queues}"))
            }
            _ => ("attached", format!("{kind}, {mode}")),
        });
        let place = match &attachment.endpoint {
            EndpointSpec::Fuse { .. } => "file",
            EndpointSpec::Ublk { .. }
            | EndpointSpec::NbdDevice { .. }
            | EndpointSpec::Loop { .. } => "device",
            _ => "socket",
        };
        rows.push((place, attachment.endpoint.path().display().to_string()));
    }
    let snapshots = match space {
        Space::Known { usage } => snapshot_table(usage),
        Space::Unknown { .. } => String::new(),
    };
    facts(&rows) + &snapshots
}

fn exactly(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human(bytes))
}

fn space_rows(space: &Space, kind: Kind) -> Vec<(&'static str, String)> {
    let usage = match space {
        Space::Known { usage } => usage,
        Space::Unknown { usage_unknown } => {
            return vec![("mapped", format!("not known: {usage_unknown}"))];
        }
    };
    let provisioned = human(usage.provisioned);
    let mut rows = vec![
        (
            "mapped",
            format!("{} of {provisioned} provisioned", exactly(usage.mapped)),
        ),
        (
            "unique",
            format!("{}, given back by its removal", exactly(usage.unique)),
        ),
        ("shared", exactly(usage.shared)),
    ];
    if let Some(stored) = usage.stored {
        let with = match kind {
            Kind::Snapshot => ", with the other snapshots of its removed volume",
            Kind::Volume | Kind::Importing => ", with its snapshots",
            Kind::Image => "",
        };
        rows.push(("stored", exactly(stored) + with));
    }
    rows
}

fn snapshot_table(usage: &Usage) -> String {
    let mut table = Table::new(&["SNAPSHOT", "MAPPED", "REMOVAL FREES"]);
    for snapshot in &usage.snapshots {
        table.row([
            snapshot.name.to_string(),
            human(snapshot.mapped),
            human(snapshot.unique),
        ]);
    }
    match table.is_empty() {
        true => String::new(),
        false => format!("\n{}", table.render()),
    }
}
