//! Control commands, by the node's API or by its command, and what the catalogue lists before and after.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::layout::Layout;
use archipelago_api::types::{
    Attachment, Bulk, Done, NodeStatus, PoolCheck, VolumePage, VolumeView,
};
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::check::{FindingKind, Report};
use archipelago_protocol::{Error, ErrorCode, LabelChanges, Labels, OnFull};
use archipelago_segment::{Buffer, Request, VolumeClient, VolumeOptions};
use serde_json::{Value, json};

/// Bytes of an import.
pub const IMPORT_LEN: u32 = 256 << 10;
const POOL: &str = "default";

/// A name as the catalogue lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    kind: Kind,
    size: u64,
    parent: Option<String>,
    on_full: OnFull,
    labels: Labels,
    attached: bool,
}

/// What the catalogue lists, by name.
pub type Listing = BTreeMap<String, Listed>;

/// Something that the node is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the command's")]
pub enum Command {
    Create {
        name: &'static str,
        size: u64,
    },
    Clone {
        source: &'static str,
        name: &'static str,
    },
    Snapshot {
        volume: &'static str,
        name: &'static str,
    },
    Resize {
        name: &'static str,
        size: u64,
    },
    Set {
        name: &'static str,
        on_full: OnFull,
    },
    Label {
        name: &'static str,
        label: &'static str,
        unset: Option<&'static str>,
    },
    Rename {
        old: &'static str,
        new: &'static str,
    },
    Remove {
        name: &'static str,
    },
    Attach {
        name: &'static str,
    },
    Detach {
        name: &'static str,
    },
    Import {
        name: &'static str,
    },
    Export {
        name: &'static str,
    },
    Info {
        name: &'static str,
    },
    List,
    Pools,
    Pool,
    Status,
    Doctor,
}

fn volume(name: &str, action: &str) -> String {
    format!("/v1/volumes/{}{action}", path_segment(name))
}

/// What imports are made of.
fn content() -> Vec<u8> {
    (1..=251_u8).cycle().take(IMPORT_LEN as usize).collect()
}

impl Command {
    /// Whether it works also where no byte is left: it makes nothing.
    #[must_use]
    pub fn needs_no_space(&self) -> bool {
        match self {
            Command::Create { .. }
            | Command::Clone { .. }
            | Command::Snapshot { .. }
            | Command::Resize { .. }
            | Command::Set { .. }
            | Command::Label { .. }
            | Command::Rename { .. }
            | Command::Attach { .. }
            | Command::Import { .. } => false,
            Command::Remove { .. }
            | Command::Detach { .. }
            | Command::Export { .. }
            | Command::Info { .. }
            | Command::List
            | Command::Pools
            | Command::Pool
            | Command::Status
            | Command::Doctor => true,
        }
    }

    /// What it makes of `listing` when it is done.
    ///
    /// # Errors
    /// If it speaks of something that is not listed: the test's own mistake.
    pub fn apply(&self, listing: &mut Listing) -> Result<()> {
        let entry = |kind, size, parent: Option<&str>| Listed {
            kind,
            size,
            parent: parent.map(str::to_owned),
            on_full: OnFull::default(),
            labels: Labels::default(),
            attached: false,
        };
        let known = |listing: &Listing, name: &str| {
            let found = listing.get(name).cloned();
            found.with_context(|| format!("`{name}` is not listed"))
        };
        match *self {
            Command::Create { name, size } => {
                listing.insert(name.to_owned(), entry(Kind::Volume, size, None));
            }
            Command::Clone { source, name } => {
                let Listed { size, on_full, .. } = known(listing, source)?;
                let clone = Listed {
                    on_full,
                    ..entry(Kind::Volume, size, Some(source))
                };
                listing.insert(name.to_owned(), clone);
            }
            Command::Snapshot { volume, name } => {
                let Listed { size, on_full, .. } = known(listing, volume)?;
                let snapshot = Listed {
                    on_full,
                    ..entry(Kind::Snapshot, size, Some(volume))
                };
                listing.insert(name.to_owned(), snapshot);
            }
            Command::Resize { name, size } => {
                let resized = Listed {
                    size,
                    ..known(listing, name)?
                };
                listing.insert(name.to_owned(), resized);
            }
            Command::Set { name, on_full } => {
                let set = Listed {
                    on_full,
                    ..known(listing, name)?
                };
                listing.insert(name.to_owned(), set);
            }
            Command::Label { name, .. } => {
                let mut labelled = known(listing, name)?;
                labelled.labels.apply(&self.label_changes()?)?;
                listing.insert(name.to_owned(), labelled);
            }
            Command::Rename { old, new } => {
                let moved = known(listing, old)?;
                listing.remove(old);
                listing.insert(new.to_owned(), moved);
                for child in listing.values_mut() {
                    if child.parent.as_deref() == Some(old) {
                        child.parent = Some(new.to_owned());
                    }
                }
            }
            Command::Remove { name } => {
                listing.remove(name);
                for child in listing.values_mut() {
                    child.parent.take_if(|parent| parent == name);
                }
            }
            Command::Attach { name } | Command::Detach { name } => {
                let attached = matches!(self, Command::Attach { .. });
                let changed = Listed {
                    attached,
                    ..known(listing, name)?
                };
                listing.insert(name.to_owned(), changed);
            }
            Command::Import { name } => {
                let size = u64::from(IMPORT_LEN);
                listing.insert(name.to_owned(), entry(Kind::Image, size, None));
            }
            Command::Export { .. }
            | Command::Info { .. }
            | Command::List
            | Command::Pools
            | Command::Pool
            | Command::Status
            | Command::Doctor => {}
        }
        Ok(())
    }

    /// The changes of a [`Command::Label`].
    fn label_changes(&self) -> Result<LabelChanges, Error> {
        let mut changes = LabelChanges::default();
        if let Command::Label { label, unset, .. } = self {
            changes.set(label.parse()?)?;
            if let Some(key) = unset {
                changes.unset(key.parse()?)?;
            }
        }
        Ok(changes)
    }

    /// The same for the command `archipelago`; imports and exports are of files in `dir`, which exists.
    ///
    /// # Errors
    /// If the file to import cannot be written.
    pub fn arguments(&self, dir: &Path) -> Result<Vec<String>> {
        let file = |name: &str| dir.join(name).display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Ok(match *self {
            Command::Create { name, size } => {
                words(&["volume", "create", name, "--size", &size.to_string()])
            }
            Command::Clone { source, name } => words(&["volume", "clone", source, name]),
            Command::Snapshot { volume, name } => words(&["volume", "snapshot", volume, name]),
            Command::Resize { name, size } => words(&["volume", "resize", name, &size.to_string()]),
            Command::Set { name, on_full } => {
                words(&["volume", "set", name, "--on-full", &on_full.to_string()])
            }
            Command::Label { name, label, unset } => {
                let mut all = vec!["volume", "set", name, label];
                all.extend(unset.iter().flat_map(|key| ["--unset", *key]));
                words(&all)
            }
            Command::Rename { old, new } => words(&["volume", "rename", old, new]),
            Command::Remove { name } => words(&["volume", "remove", name]),
            Command::Attach { name } => words(&["volume", "attach", name]),
            Command::Detach { name } => words(&["volume", "detach", name]),
            Command::Import { name } => {
                std::fs::write(dir.join("import"), content())?;
                words(&["image", "import", &file("import"), name])
            }
            Command::Export { name } => words(&["image", "export", name, &file("export")]),
            Command::Info { name } => words(&["volume", "info", name]),
            Command::List => words(&["volume", "list"]),
            Command::Pools => words(&["pool", "list"]),
            Command::Pool => words(&["pool", "info", POOL]),
            Command::Status => words(&["node", "status"]),
            Command::Doctor => words(&["doctor"]),
        })
    }
}

/// Asks the daemon of a node.
#[derive(Debug)]
pub struct Control {
    client: Client,
}

impl Control {
    /// Of the node in `root`.
    ///
    /// # Errors
    /// If that is no place for a node.
    pub fn new(root: &Path) -> Result<Control> {
        Ok(Control {
            client: Client::new(Layout::new(Some(root))?),
        })
    }

    /// What the catalogue lists.
    ///
    /// # Errors
    /// If the daemon refuses, or there is more than a page.
    pub fn list(&self) -> Result<Listing> {
        let page: VolumePage = self.client.get("/v1/volumes")?;
        ensure!(page.next.is_none(), "more than a page");
        let listed = |view: VolumeView| {
            let listed = Listed {
                kind: view.entry.kind,
                size: view.entry.size,
                parent: view.entry.parent.map(|name| name.to_string()),
                on_full: view.entry.on_full,
                labels: view.entry.labels,
                attached: !view.attachments.is_empty(),
            };
            (view.entry.name.to_string(), listed)
        };
        Ok(page.volumes.into_iter().map(listed).collect())
    }

    /// What the doctor finds.
    ///
    /// # Errors
    /// If the daemon refuses.
    pub fn check(&self) -> Result<Report, Error> {
        let check: PoolCheck = self.client.get(&format!("/v1/pools/{POOL}/check"))?;
        Ok(check.report)
    }

    /// Does `command`.
    ///
    /// # Errors
    /// What the daemon, or whoever copies, says.
    pub fn run(&self, command: &Command) -> Result<(), Error> {
        let client = &self.client;
        let post = Method::Post;
        match *command {
            Command::Create { name, size } => {
                let body = json!({"name": name, "size": size});
                client.call::<_, VolumeView>(post, "/v1/volumes", &body)?;
            }
            Command::Clone { source, name } => {
                let body = json!({"name": name});
                client.call::<_, VolumeView>(post, &volume(source, "/clone"), &body)?;
            }
            Command::Snapshot { volume: of, name } => {
                let body = json!({"name": name});
                client.call::<_, VolumeView>(post, &volume(of, "/snapshot"), &body)?;
            }
            Command::Resize { name, size } => {
                let body = json!({"size": size});
                client.call::<_, VolumeView>(post, &volume(name, "/resize"), &body)?;
            }
            Command::Set { name, on_full } => {
                let body = json!({"on_full": on_full});
                client.call::<_, VolumeView>(post, &volume(name, "/set"), &body)?;
            }
            Command::Label { name, .. } => {
                let body = json!({"labels": command.label_changes()?});
                client.call::<_, VolumeView>(post, &volume(name, "/set"), &body)?;
            }
            Command::Rename { old, new } => {
                let body = json!({"to": new});
                client.call::<_, VolumeView>(post, &volume(old, "/rename"), &body)?;
            }
            Command::Remove { name } => {
                client.call::<_, Done>(Method::Delete, &volume(name, ""), &())?;
            }
            Command::Attach { name } => {
                client.call::<_, Attachment>(post, &volume(name, "/attach"), &())?;
            }
            Command::Detach { name } => {
                client.call::<_, Done>(post, &volume(name, "/detach"), &())?;
            }
            Command::Import { name } => self.import(name)?,
            Command::Export { name } => self.export(name)?,
            Command::Info { name } => {
                client.get::<VolumeView>(&volume(name, ""))?;
            }
            Command::List => {
                client.get::<VolumePage>("/v1/volumes")?;
            }
            Command::Pools => {
                client.get::<Value>("/v1/pools")?;
            }
            Command::Pool => {
                client.get::<Value>(&format!("/v1/pools/{POOL}"))?;
            }
            Command::Status => {
                client.get::<NodeStatus>("/v1/node/status")?;
            }
            Command::Doctor => {
                self.check()?;
            }
        }
        Ok(())
    }

    /// As `image import` does it: begun invisible, filled, published; removed if anything fails.
    fn import(&self, name: &str) -> Result<(), Error> {
        let body = json!({"name": name, "size": IMPORT_LEN});
        let bulk: Bulk = self.client.call(Method::Post, "/v1/images", &body)?;
        let path = format!("/v1/images/{}", path_segment(name));
        let published = copy(&bulk, |mut buffer| {
            buffer.write(0, &content());
            Request::Write {
                offset: 0,
                len: IMPORT_LEN,
                buffer,
                durable: false,
            }
        })
        .and_then(|()| {
            let path = format!("{path}/publish?lineage={}", bulk.lineage);
            self.client.call::<_, VolumeView>(Method::Post, &path, &())
        });
        match published {
            Ok(_) => Ok(()),
            Err(error) => {
                let path = format!("{path}?lineage={}", bulk.lineage);
                self.client.call::<_, Done>(Method::Delete, &path, &())?;
                Err(error)
            }
        }
    }

    /// As `image export` does it, of the first bytes.
    fn export(&self, name: &str) -> Result<(), Error> {
        let path = volume(name, "/export");
        let bulk: Bulk = self.client.call(Method::Post, &path, &())?;
        copy(&bulk, |buffer| Request::Read {
            offset: 0,
            len: IMPORT_LEN,
            buffer,
        })
    }
}

/// A copy by one request on a buffer of [`IMPORT_LEN`] bytes, closed at its end.
fn copy(bulk: &Bulk, request: impl FnOnce(Buffer) -> Request) -> Result<(), Error> {
    let options = VolumeOptions {
        buffers: 1,
        buffer_len: IMPORT_LEN as usize,
    };
    let mut volume = VolumeClient::connect(&bulk.socket, bulk.uid, options)?;
    let disconnected = || Error::new(ErrorCode::Unavailable, "the endpoint has disconnected");
    let buffer = volume.buffers().acquire().ok_or_else(disconnected)?;
    volume
        .submit(0, request(buffer))
        .map_err(|_refused| disconnected())?;
    let finished = volume.wait().ok_or_else(disconnected)?;
    finished
        .result
        .map_err(|code| Error::new(code, format!("copying failed: {code}")))?;
    volume.close()
}

/// Whether `report` names objects that nothing needs, apart from blocks of a living volume that were written anew or are known to
/// no snapshot any more: their space comes back with the volume's.
#[must_use]
pub fn orphans(report: &Report) -> bool {
    report.findings.iter().any(|finding| {
        finding.kind == FindingKind::Leaked
            && !finding.message.contains("when the lineage is removed")
    })
}
