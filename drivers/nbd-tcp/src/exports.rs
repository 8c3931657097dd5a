//! The exports: which names there are, what is open, and for how many clients.
//!
//! | state of a place | means |
//! |---|---|
//! | locked | being opened, or closed behind its last client |
//! | a volume | open: its users share the handle |
//! | none | nobody uses it |
//!
//! Invariants
//! - A name is open once at a time: whoever wants it while it is being closed waits, and opens it anew, so that it sees a resize.
//! - A volume whose channel has ended is not given to anybody else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use archipelago_api::client::{Client, path_segment};
use archipelago_api::types::{VolumePage, VolumeView};
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{Access, Error, ErrorCode, Name};
use archipelago_segment::{VolumeClient, VolumeOptions};
use tokio::sync::Mutex;

use crate::volume::{Export, OPTIONS, Volume};

/// Names of a list at most: with those of 255 bytes 2 MiB.
const NAMES_MAX: usize = 8192;
/// Names of a page.
const PAGE_LEN: usize = 1000;
/// A node whose data process has died serves again after that long, mostly.
const OPEN_TRIES: u32 = 25;
const OPEN_INTERVAL: Duration = Duration::from_millis(200);

/// Where a volume is while it is open.
type Place = Mutex<Option<Rc<Volume>>>;

/// All exports of a server.
pub(crate) struct Exports {
    node: Client,
    /// Empty: everything that the node has.
    names: Vec<Name>,
    read_only: bool,
    places: RefCell<HashMap<Name, Rc<Place>>>,
}

impl Exports {
    pub(crate) fn new(node: Client, names: Vec<Name>, read_only: bool) -> Self {
        Exports {
            node,
            names,
            read_only,
            places: RefCell::default(),
        }
    }

    /// Whether everything that is named can be opened: opens and closes it.
    ///
    /// # Errors
    /// What the node says to the first that cannot.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        if self.names.is_empty() {
            self.names().await?;
        }
        for name in &self.names {
            self.open(name.as_str().as_bytes()).await?.give_back().await;
        }
        Ok(())
    }

    /// The names of all exports.
    ///
    /// # Errors
    /// What the node says; [`ErrorCode::TooLarge`] if there are too many for a list.
    pub(crate) async fn names(&self) -> Result<Vec<String>, Error> {
        if !self.names.is_empty() {
            return Ok(self.names.iter().map(Name::to_string).collect());
        }
        let node = self.node.clone();
        blocking(move || list(&node)).await
    }

    /// What `name` is, without opening it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if it is no export; what the node says.
    pub(crate) async fn describe(&self, name: &[u8]) -> Result<Export, Error> {
        let name = self.resolve(name)?;
        let (node, read_only) = (self.node.clone(), self.read_only);
        blocking(move || look(&node, &name, read_only)).await
    }

    /// The export `name` for one more client.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if it is no export; what the node says: [`ErrorCode::InUse`] if somebody else has it open.
    pub(crate) async fn open(&self, name: &[u8]) -> Result<Lease, Error> {
        let name = self.resolve(name)?;
        let place = Rc::clone(self.places.borrow_mut().entry(name.clone()).or_default());
        let mut volume = place.lock().await;
        let open = match volume.as_ref().filter(|volume| !volume.is_ended()) {
            Some(open) => Rc::clone(open),
            None => {
                *volume = None;
                let opened = self
                    .open_anew(name)
                    .await
                    .inspect_err(|_| self.forget_unused());
                Rc::clone(volume.insert(opened?))
            }
        };
        drop(volume);
        open.users.set(open.users.get() + 1);
        Ok(Lease {
            place,
            volume: open,
        })
    }

    async fn open_anew(&self, name: Name) -> Result<Rc<Volume>, Error> {
        self.forget_unused();
        let mut tries = 0;
        loop {
            let (node, read_only, asked) = (self.node.clone(), self.read_only, name.clone());
            match blocking(move || connect(&node, &asked, read_only)).await {
                Ok((export, client)) => return Volume::start(export, client),
                Err(error) if error.code == ErrorCode::Unavailable && tries < OPEN_TRIES => {
                    tries += 1;
                    tokio::time::sleep(OPEN_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The name that a client means.
    fn resolve(&self, name: &[u8]) -> Result<Name, Error> {
        let unknown = || Error::new(ErrorCode::NotFound, "there is no export of this name");
        if let ([only], true) = (self.names.as_slice(), name.is_empty()) {
            return Ok(only.clone());
        }
        let text = std::str::from_utf8(name).map_err(|_binary| unknown())?;
        let name: Name = text.parse()?;
        match self.names.is_empty() || self.names.contains(&name) {
            true => Ok(name),
            false => Err(unknown()),
        }
    }

    /// Clients can ask for any number of names: what nobody uses takes no memory.
    fn forget_unused(&self) {
        let mut places = self.places.borrow_mut();
        places.retain(|_, place| Rc::strong_count(place) > 1);
    }
}

/// One client's use of an export; to be given back.
#[must_use]
pub(crate) struct Lease {
    place: Rc<Place>,
    volume: Rc<Volume>,
}

impl Lease {
    pub(crate) fn volume(&self) -> &Rc<Volume> {
        &self.volume
    }

    /// Closes the volume if this was its last user.
    pub(crate) async fn give_back(self) {
        let mut place = self.place.lock().await;
        let users = self.volume.users.get() - 1;
        self.volume.users.set(users);
        let is_current = place
            .as_ref()
            .is_some_and(|it| Rc::ptr_eq(it, &self.volume));
        if users > 0 || !is_current {
            return;
        }
        *place = None;
        // Of a volume whose channel has ended there is nothing to close: who used it was cut off.
        if self.volume.is_ended() {
            return;
        }
        if let Err(code) = self.volume.close().await {
            tracing::error!(
                "closing `{}`: {code}: what was written since the last flush may be lost",
                self.volume.name()
            );
        }
    }
}

/// Calls the node beside the thread that serves.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let called = tokio::task::spawn_blocking(call).await;
    called.unwrap_or_else(|_panicked| {
        let message = "a call to the node has failed";
        Err(Error::new(ErrorCode::Internal, message))
    })
}

fn look(node: &Client, name: &Name, read_only: bool) -> Result<Export, Error> {
    let view: VolumeView = node.get(&format!("/v1/volumes/{}", path_segment(name.as_str())))?;
    let entry = view.entry;
    if entry.kind == Kind::Importing {
        let message = format!("`{name}` is being imported");
        return Err(Error::new(ErrorCode::InUse, message));
    }
    Ok(Export {
        name: entry.name,
        size: entry.size,
        read_only: read_only || entry.kind != Kind::Volume,
    })
}

fn connect(node: &Client, name: &Name, read_only: bool) -> Result<(Export, VolumeClient), Error> {
    let export = look(node, name, read_only)?;
    let access = match export.read_only {
        true => Access::Read,
        false => Access::Write,
    };
    let opened = node.open(name, access)?;
    let client = VolumeClient::connect(&opened.socket, opened.uid, VolumeOptions { ..OPTIONS })?;
    let size = opened.size;
    Ok((Export { size, ..export }, client))
}

fn list(node: &Client) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    let mut after: Option<Name> = None;
    loop {
        let behind = after.map_or_else(String::new, |name| {
            format!("&after={}", path_segment(name.as_str()))
        });
        let page: VolumePage = node.get(&format!("/v1/volumes?limit={PAGE_LEN}{behind}"))?;
        let exported = page.volumes.into_iter().map(|view| view.entry);
        let exported = exported.filter(|entry| entry.kind != Kind::Importing);
        names.extend(exported.map(|entry| entry.name.to_string()));
        if names.len() > NAMES_MAX {
            let message = format!("there are more than {NAMES_MAX} exports");
            return Err(Error::new(ErrorCode::TooLarge, message));
        }
        after = match page.next {
            Some(next) => Some(next),
            None => return Ok(names),
        };
    }
}
