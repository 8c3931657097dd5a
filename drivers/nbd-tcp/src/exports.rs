//! The exports: which names there are, what is open, and for how many clients.
//!
//! | state of a place | means |
//! |---|---|
//! | locked | being opened, or closed behind its last client |
//! | a volume | open: its users share the handle |
//! | none | nobody uses it |
//!
//! Invariants
//! - Places are found by lineage: a name may come to mean something else while what it meant is open.
//! - A lineage is open once at a time: whoever wants it while it is being closed waits, and opens it anew, so that it sees a resize.
//! - A volume that has ended is not given to anybody else. One that is away from its channel is: it is kept for its clients.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::client::{Client, path_segment};
use archipelago_api::types::{VolumePage, VolumeView};
use archipelago_kept_volume::{Connection, Opener};
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{Access, Error, ErrorCode, Lineage, Name};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::places::OPTIONS;
use crate::volume::{Export, Volume};

/// Clients that use exports at a time: each can have 32 MiB of replies waiting, so these 2 GiB.
const CLIENTS_MAX: usize = 64;
/// Exports that are open at a time: half of what a data process opens, the rest is for imports, exports of images and mounts.
const OPEN_EXPORTS_MAX: usize = 32;
/// Questions that the node is asked at a time, each on a thread of its own.
const QUESTIONS_MAX: usize = 32;
/// Names of a list at most: with those of 255 bytes 2 MiB.
const NAMES_MAX: usize = 8192;
/// Names of a page.
const PAGE_LEN: usize = 1000;
/// A node whose data process has died serves again after that long, mostly: later, no further try begins.
const TRIES_MAX: Duration = Duration::from_secs(5);
const OPEN_INTERVAL: Duration = Duration::from_millis(200);
/// How long a volume may take to be closed. A write that waits for room in its pool takes longer: then the channel is cut off, and the
/// node ends such writes and makes the others durable.
const CLOSE_MAX: Duration = Duration::from_secs(30);

/// Where a volume is while it is open.
type Place = Mutex<Option<Rc<Volume>>>;

/// All exports of a server.
pub(crate) struct Exports {
    node: Client,
    /// Empty: everything that the node has.
    names: Vec<Name>,
    read_only: bool,
    /// How long requests wait for a node that is away.
    wait_max: Duration,
    places: RefCell<HashMap<Lineage, Rc<Place>>>,
    /// Places of clients that are free.
    clients: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    /// The first volume that could not be closed.
    failure: RefCell<Option<Error>>,
}

/// What a name means now.
struct Found {
    lineage: Lineage,
    export: Export,
}

impl Exports {
    pub(crate) fn new(node: Client, names: Vec<Name>, read_only: bool, wait_max: Duration) -> Self {
        Exports {
            node,
            names,
            read_only,
            wait_max,
            places: RefCell::default(),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            failure: RefCell::default(),
        }
    }

    /// Whether everything that is named can be opened: opens and closes it.
    ///
    /// # Errors
    /// What the node says to the first that cannot.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        if self.names.is_empty() {
            // Whether it answers; there may be more of them than go into a list.
            let node = self.node.clone();
            let _some: VolumePage = self.ask(move || node.get("/v1/volumes?limit=1")).await?;
        }
        for name in &self.names {
            let lease = self.open(name.as_str().as_bytes()).await?;
            self.take_back(lease).await;
        }
        self.outcome()
    }

    /// Whether everything could be closed so far.
    ///
    /// # Errors
    /// Why the first could not.
    pub(crate) fn outcome(&self) -> Result<(), Error> {
        self.failure.borrow_mut().take().map_or(Ok(()), Err)
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
        self.ask(move || list(&node)).await
    }

    /// What `name` is, without opening it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if it is no export; what the node says.
    pub(crate) async fn describe(&self, name: &[u8]) -> Result<Export, Error> {
        let name = self.resolve(name)?;
        Ok(self.find(name).await?.export)
    }

    async fn find(&self, name: Name) -> Result<Found, Error> {
        let (node, read_only) = (self.node.clone(), self.read_only);
        self.ask(move || look(&node, &name, read_only)).await
    }

    /// The export `name` for one more client. Whoever waits no longer leaves nothing behind.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if it is no export; what the node says: [`ErrorCode::InUse`] if somebody else has it open, and if
    /// there are too many clients or open exports.
    pub(crate) async fn open(&self, name: &[u8]) -> Result<Lease, Error> {
        let name = self.resolve(name)?;
        let Ok(counted) = Arc::clone(&self.clients).try_acquire_owned() else {
            let message = format!("{CLIENTS_MAX} clients use this server already");
            return Err(Error::new(ErrorCode::InUse, message));
        };
        let deadline = Instant::now() + TRIES_MAX;
        loop {
            match self.try_open(name.clone()).await {
                Err(error) if error.code == ErrorCode::Unavailable && Instant::now() < deadline => {
                    tokio::time::sleep(OPEN_INTERVAL).await;
                }
                opened => {
                    let (place, volume) = opened?;
                    return Ok(Lease {
                        place,
                        volume,
                        _counted: counted,
                    });
                }
            }
        }
    }

    async fn try_open(&self, name: Name) -> Result<(Rc<Place>, Rc<Volume>), Error> {
        let found = self.find(name).await?;
        self.forget_unused();
        let place = self.place(found.lineage)?;
        let mut volume = place.lock().await;
        let open = match volume.as_ref().filter(|volume| !volume.is_ended()) {
            Some(open) => Rc::clone(open),
            None => {
                *volume = None;
                let node = self.node.clone();
                let opened = self.ask(move || connect(node, found)).await?;
                let (export, opener, connection) = opened;
                let started = Volume::start(export, opener, connection, self.wait_max)?;
                Rc::clone(volume.insert(started))
            }
        };
        drop(volume);
        open.users.set(open.users.get() + 1);
        Ok((place, open))
    }

    fn place(&self, lineage: Lineage) -> Result<Rc<Place>, Error> {
        let mut places = self.places.borrow_mut();
        if places.len() >= OPEN_EXPORTS_MAX && !places.contains_key(&lineage) {
            let message = format!("{OPEN_EXPORTS_MAX} exports are in use already");
            return Err(Error::new(ErrorCode::InUse, message));
        }
        Ok(Rc::clone(places.entry(lineage).or_default()))
    }

    /// Takes an export back, and closes the volume if this was its last user.
    pub(crate) async fn take_back(&self, lease: Lease) {
        let Lease {
            place,
            volume,
            _counted,
        } = lease;
        let mut place = place.lock().await;
        let users = volume.users.get() - 1;
        volume.users.set(users);
        let is_current = place.as_ref().is_some_and(|it| Rc::ptr_eq(it, &volume));
        if users > 0 || !is_current {
            return;
        }
        *place = None;
        // Of a volume that has ended there is nothing to close: who used it was cut off. Nor of one that is away: what was answered
        // outlives that, and nobody waits for the rest.
        if volume.is_away() {
            volume.cut_off();
            return volume.ended().await;
        }
        if volume.is_ended() {
            return;
        }
        let closed = timeout(CLOSE_MAX, volume.close()).await;
        let code = match closed {
            Ok(Ok(())) => return,
            Ok(Err(code)) => code,
            Err(_late) => {
                volume.cut_off();
                ErrorCode::Unavailable
            }
        };
        let message = format!(
            "closing `{}`: {code}: what was written since the last flush may be lost",
            volume.name()
        );
        tracing::error!("{message}");
        let error = Error::new(code, message).with_hint("archipelago node status");
        self.failure.borrow_mut().get_or_insert(error);
    }

    /// Calls the node beside the thread that serves.
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let asked = Arc::clone(&self.questions).acquire_owned().await;
        // Counted until it returns, also if nobody waits for it any more.
        let called = tokio::task::spawn_blocking(move || {
            let _asked = asked;
            call()
        });
        called.await.unwrap_or_else(|_panicked| {
            let message = "a call to the node has failed";
            Err(Error::new(ErrorCode::Internal, message))
        })
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
    _counted: OwnedSemaphorePermit,
}

impl Lease {
    pub(crate) fn volume(&self) -> &Rc<Volume> {
        &self.volume
    }
}

fn look(node: &Client, name: &Name, read_only: bool) -> Result<Found, Error> {
    let view: VolumeView = node.get(&format!("/v1/volumes/{}", path_segment(name.as_str())))?;
    let entry = view.entry;
    if entry.kind == Kind::Importing {
        let message = format!("`{name}` is being imported");
        return Err(Error::new(ErrorCode::InUse, message));
    }
    Ok(Found {
        lineage: entry.lineage,
        export: Export {
            name: entry.name,
            size: entry.size,
            read_only: read_only || entry.kind != Kind::Volume,
        },
    })
}

/// Opens what was found.
fn connect(node: Client, found: Found) -> Result<(Export, Opener, Connection), Error> {
    let access = match found.export.read_only {
        true => Access::Read,
        false => Access::Write,
    };
    let opener = Opener::new(node, found.export.name.clone(), found.lineage, OPTIONS);
    let connection = opener.open(access, None)?;
    let size = connection.size;
    let export = Export {
        size,
        ..found.export
    };
    Ok((export, opener, connection))
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
