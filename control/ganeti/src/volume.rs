//! A volume of the node, by its name, and the requests that scripts send about it.

use std::time::Duration;

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::types::{
    AttachVolume, Attachment, CloneVolume, CreateVolume, DetachVolume, Done, EndpointKind,
    ResizeVolume, SetVolume, SnapshotVolume, VolumeView,
};
use archipelago_protocol::{Error, ErrorCode, LabelChanges, Labels, Name};

use crate::clock::Clock;

/// Timeout for a front end that is disconnecting, and for a volume that is being closed. Ganeti itself waits 30 s for a removal.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two tries. The daemon itself waits 4 s in each try.
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

    /// The node's view of the volume.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if the volume does not exist.
    pub(crate) fn view(&self) -> Result<VolumeView, Error> {
        self.client.get(&self.path(""))
    }

    /// The node's view of the volume; `None` if it does not exist.
    pub(crate) fn find(&self) -> Result<Option<VolumeView>, Error> {
        match self.view() {
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            view => view.map(Some),
        }
    }

    /// Creates the volume, which must not exist.
    pub(crate) fn create(&self, request: &CreateVolume) -> Result<VolumeView, Error> {
        self.client.call(Method::Post, "/v1/volumes", request)
    }

    /// Creates the volume as a clone of `origin`, with the options of `request`; it must not exist.
    pub(crate) fn clone_of(
        &self,
        origin: &Name,
        request: &CloneVolume,
    ) -> Result<VolumeView, Error> {
        let path = format!("/v1/volumes/{}/clone", path_segment(origin.as_str()));
        self.client.call(Method::Post, &path, request)
    }

    /// Makes a snapshot of the volume, with `labels`.
    pub(crate) fn snapshot(&self, snapshot: &Name, labels: Labels) -> Result<VolumeView, Error> {
        let request = SnapshotVolume {
            name: snapshot.clone(),
            labels,
        };
        let path = self.path("/snapshot");
        self.client.call(Method::Post, &path, &request)
    }

    /// Sets the size of the volume to `size` bytes, which must not be smaller than its present size.
    pub(crate) fn resize(&self, size: u64) -> Result<VolumeView, Error> {
        let request = ResizeVolume { size, force: false };
        let path = self.path("/resize");
        self.client.call(Method::Post, &path, &request)
    }

    /// Changes the volume's labels by `labels`.
    pub(crate) fn label(&self, labels: LabelChanges) -> Result<VolumeView, Error> {
        let request = SetVolume {
            on_full: None,
            labels,
        };
        self.client.call(Method::Post, &self.path("/set"), &request)
    }

    /// Attaches the volume as `kind`, for writes; a repeated call returns the same attachment.
    pub(crate) fn attach(&self, kind: EndpointKind) -> Result<Attachment, Error> {
        self.attach_as(kind, false)
    }

    /// Attaches the volume as `kind`, read-only, as snapshots and images require.
    pub(crate) fn attach_read_only(&self, kind: EndpointKind) -> Result<Attachment, Error> {
        self.attach_as(kind, true)
    }

    fn attach_as(&self, kind: EndpointKind, read_only: bool) -> Result<Attachment, Error> {
        let request = AttachVolume {
            kind: Some(kind),
            // Always set: a read-only attachment that a user has made by hand does not serve an instance.
            read_only: Some(read_only),
            ..AttachVolume::default()
        };
        self.client
            .call(Method::Post, &self.path("/attach"), &request)
    }

    /// Ends all attachments of the volume. Waits for a front end that is disconnecting.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if the volume is still in use after [`BUSY_TIMEOUT`].
    pub(crate) fn detach_all(&self) -> Result<(), Error> {
        self.while_in_use(|| self.try_detach_all())
    }

    /// As [`Volume::detach_all`], tried once.
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
            // Another request has ended it meanwhile.
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            detached => detached.map(|Done {}| ()),
        }
    }

    /// Removes the volume, if it exists, and all its attachments.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if the volume is still in use after [`BUSY_TIMEOUT`].
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.detach_all()?;
        self.while_in_use(
            || match self.client.call(Method::Delete, &self.path(""), &()) {
                Err(error) if error.code == ErrorCode::NotFound => Ok(()),
                removed => removed.map(|Done {}| ()),
            },
        )
    }

    /// The result of `attempt`, which is repeated while the volume is in use, for [`BUSY_TIMEOUT`] at most.
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
