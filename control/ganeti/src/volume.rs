//! A volume of the node, by its name: what the scripts do to it.

use std::time::Duration;

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::types::{
    AttachVolume, Attachment, CloneVolume, CreateVolume, DetachVolume, Done, EndpointKind,
    ResizeVolume, SetVolume, SnapshotVolume, VolumeView,
};
use archipelago_protocol::{Error, ErrorCode, LabelChanges, Labels, Name};

use crate::clock::Clock;

/// How long a front end that is going, and a volume that is being closed, are waited for. Ganeti itself waits 30 s for a removal.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries. The daemon waits for what passes too, for 4 s each.
const BUSY_STEP: Duration = Duration::from_millis(100);

/// A volume, which may exist or not.
pub(crate) struct Volume<'a> {
    client: &'a Client,
    clock: &'a dyn Clock,
    name: &'a Name,
}

impl<'a> Volume<'a> {
    pub(crate) fn new(client: &'a Client, clock: &'a dyn Clock, name: &'a Name) -> Volume<'a> {
        Volume {
            client,
            clock,
            name,
        }
    }

    pub(crate) fn name(&self) -> &'a Name {
        self.name
    }

    fn path(&self, action: &str) -> String {
        format!("/v1/volumes/{}{action}", path_segment(self.name.as_str()))
    }

    /// What the node knows of it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if there is none.
    pub(crate) fn view(&self) -> Result<VolumeView, Error> {
        self.client.get(&self.path(""))
    }

    /// The same; nothing if there is none.
    pub(crate) fn find(&self) -> Result<Option<VolumeView>, Error> {
        match self.view() {
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            view => view.map(Some),
        }
    }

    /// Makes it; it must not exist.
    pub(crate) fn create(&self, request: &CreateVolume) -> Result<VolumeView, Error> {
        self.client.call(Method::Post, "/v1/volumes", request)
    }

    /// Makes it of `origin`, as `request` says; it must not exist.
    pub(crate) fn clone_of(
        &self,
        origin: &Name,
        request: &CloneVolume,
    ) -> Result<VolumeView, Error> {
        let path = format!("/v1/volumes/{}/clone", path_segment(origin.as_str()));
        self.client.call(Method::Post, &path, request)
    }

    /// Makes a snapshot of it, with `labels`.
    pub(crate) fn snapshot(&self, snapshot: &Name, labels: Labels) -> Result<VolumeView, Error> {
        let request = SnapshotVolume {
            name: snapshot.clone(),
            labels,
        };
        let path = self.path("/snapshot");
        self.client.call(Method::Post, &path, &request)
    }

    /// Gives it the size of `size` bytes, which is not smaller than it is.
    pub(crate) fn resize(&self, size: u64) -> Result<VolumeView, Error> {
        let request = ResizeVolume { size, force: false };
        let path = self.path("/resize");
        self.client.call(Method::Post, &path, &request)
    }

    /// Notes `labels` of it.
    pub(crate) fn label(&self, labels: LabelChanges) -> Result<VolumeView, Error> {
        let request = SetVolume {
            on_full: None,
            labels,
        };
        self.client.call(Method::Post, &self.path("/set"), &request)
    }

    /// Shows it as `kind`, to be written; the same again answers the same.
    pub(crate) fn attach(&self, kind: EndpointKind) -> Result<Attachment, Error> {
        self.attach_as(kind, false)
    }

    /// The same, to be read alone: of a snapshot or an image nothing else is possible.
    pub(crate) fn attach_read_only(&self, kind: EndpointKind) -> Result<Attachment, Error> {
        self.attach_as(kind, true)
    }

    fn attach_as(&self, kind: EndpointKind, read_only: bool) -> Result<Attachment, Error> {
        let request = AttachVolume {
            kind: Some(kind),
            // Said always: an attachment that somebody has made by hand for reading is not what an instance needs.
            read_only: Some(read_only),
            ..AttachVolume::default()
        };
        self.client
            .call(Method::Post, &self.path("/attach"), &request)
    }

    /// Ends everything that shows it. A front end that is going is waited for.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if somebody uses it for longer than that.
    pub(crate) fn detach_all(&self) -> Result<(), Error> {
        self.while_in_use(|| self.try_detach_all())
    }

    /// The same, tried once.
    pub(crate) fn try_detach_all(&self) -> Result<(), Error> {
        let attachments = self.find()?.map(|view| view.attachments);
        for attachment in attachments.into_iter().flatten() {
            self.detach(&attachment)?;
        }
        Ok(())
    }

    fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        let request = DetachVolume {
            id: Some(attachment.id),
            ..DetachVolume::default()
        };
        let path = self.path("/detach");
        match self.client.call(Method::Post, &path, &request) {
            // Another request was faster.
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            detached => detached.map(|Done {}| ()),
        }
    }

    /// Removes it, if it is there, and everything that shows it.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if somebody uses it for longer than a closing session is waited for.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.detach_all()?;
        self.while_in_use(
            || match self.client.call(Method::Delete, &self.path(""), &()) {
                Err(error) if error.code == ErrorCode::NotFound => Ok(()),
                removed => removed.map(|Done {}| ()),
            },
        )
    }

    /// What `attempt` gives, made again while the volume is in use, for [`BUSY_TIMEOUT`] at most.
    fn while_in_use<T>(&self, attempt: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let deadline = self.clock.now() + BUSY_TIMEOUT;
        loop {
            match attempt() {
                Err(error) if error.code == ErrorCode::InUse && self.clock.now() < deadline => {
                    self.clock.pause(BUSY_STEP);
                }
                done => return done,
            }
        }
    }
}
