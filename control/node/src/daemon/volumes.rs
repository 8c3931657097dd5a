//! Volumes, snapshots and clones of a pool: what the API does, in terms of mapper and endpoint.

use archipelago_api::types::{
    CloneVolume, CreateVolume, PoolCheck, RenameVolume, ResizeVolume, SetVolume, SnapshotVolume,
    VolumePage, VolumeView,
};
use archipelago_blocker_file::Claim;
use archipelago_host::Pool as _;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind};
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{Access, Error, ErrorCode, LabelFilter, Name, ObjectSize};

use super::host_device::HostDevice;
use super::local::is_local;
use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use super::pool_requests::unexpected_reply;
use super::settings::node_pool;
use crate::fresh::{fresh_lineage, seconds_since_1970};

impl Pool {
    pub(super) fn view(&self, entry: Entry) -> VolumeView {
        let attachments = self
            .attachments()
            .of_volume(&self.name, entry.lineage)
            .cloned()
            .collect();
        VolumeView {
            pool: self.name.clone(),
            attachments,
            damage: None,
            unsupported: None,
            entry,
        }
    }

    fn command(&self, rest: &str) -> String {
        format!("`{} {rest}`", self.context.layout.command())
    }

    /// What is damaged, missing or leaked in the pool.
    pub(crate) async fn check_pool(&self) -> Result<PoolCheck, Error> {
        let mut report = self.check().await?;
        let pool = node_pool(&self.config, Claim::Start, None);
        // Storage that does not answer has kept the check above as well.
        let looked = tokio::task::spawn_blocking(move || {
            pool.look_for_foreign(&mut report);
            report
        });
        let report = looked.await.map_err(|error| {
            Error::new(
                ErrorCode::Internal,
                format!("search for foreign files: {error}"),
            )
        })?;
        Ok(PoolCheck {
            pool: self.name.clone(),
            online: true,
            report,
        })
    }

    /// A page of volumes, snapshots and images, of all or of those with a label.
    pub(crate) async fn list(
        &self,
        prefix: String,
        after: Option<Name>,
        limit: usize,
        label: Option<LabelFilter>,
    ) -> Result<VolumePage, Error> {
        match self
            .catalogue(CatalogueRequest::List {
                prefix,
                after,
                limit,
                label,
            })
            .await?
        {
            CatalogueReply::Page(page) => {
                let visible = page
                    .entries
                    .into_iter()
                    .filter(|entry| entry.kind != Kind::Importing);
                Ok(VolumePage {
                    volumes: visible.map(|entry| self.view(entry)).collect(),
                    next: page.next,
                    unlisted: Vec::new(),
                })
            }
            other => Err(unexpected_reply(&other)),
        }
    }

    /// One of them.
    pub(crate) async fn info(&self, name: &Name) -> Result<VolumeView, Error> {
        let entry = self.lookup(name).await?;
        let found = self.damage(entry.lineage).await;
        let message_of = |code| {
            let of_code = found.as_ref().filter(|error| error.code == code);
            of_code.map(|error| error.message.clone())
        };
        Ok(VolumeView {
            damage: message_of(ErrorCode::Damaged),
            unsupported: message_of(ErrorCode::UnsupportedFormat),
            ..self.view(entry)
        })
    }

    /// A new, empty volume.
    pub(crate) async fn create(&self, request: CreateVolume) -> Result<VolumeView, Error> {
        check_volume_size(request.size)?;
        let _one_at_a_time = self.lock_changes().await?;
        let create = CatalogueRequest::Create {
            name: request.name.clone(),
            lineage: fresh_lineage()?,
            kind: Kind::Volume,
            size: request.size,
            object_size: request.object_size.unwrap_or(ObjectSize::DEFAULT),
            created: seconds_since_1970(),
            on_full: request.on_full.unwrap_or_default(),
            labels: request.labels,
        };
        let what = format!("`{}` was not created", request.name);
        let made = self.change(create, &request.name).await;
        Ok(self.view(made.map_err(|error| self.explain_full(&what, error))?))
    }

    /// A writable volume that begins as `source`.
    pub(crate) async fn clone_volume(
        &self,
        source: &Name,
        request: CloneVolume,
    ) -> Result<VolumeView, Error> {
        if let Some(size) = request.size {
            check_volume_size(size)?;
        }
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(source).await?;
        if !matches!(entry.kind, Kind::Snapshot | Kind::Image) {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("`{source}` is a live volume: only snapshots and images are cloned"),
            )
            .with_hint(format!(
                "make a snapshot first: {}",
                self.command(&format!("volume snapshot {source} NAME"))
            )));
        }
        if let Some(size) = request.size.filter(|size| *size < entry.size) {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!(
                    "size {size} is smaller than the {} bytes of `{source}`",
                    entry.size
                ),
            )
            .with_hint("a clone is as large as its source or larger"));
        }
        let clone = CatalogueRequest::Clone {
            source: source.clone(),
            name: request.name.clone(),
            lineage: fresh_lineage()?,
            size: request.size,
            created: seconds_since_1970(),
            on_full: request.on_full,
            labels: request.labels,
        };
        let what = format!("`{source}` was not cloned to `{}`", request.name);
        let made = self.change(clone, &request.name).await;
        Ok(self.view(made.map_err(|error| self.explain_full(&what, error))?))
    }

    /// A snapshot, of a volume that a guest may be running on.
    pub(crate) async fn snapshot(
        &self,
        volume: &Name,
        request: SnapshotVolume,
    ) -> Result<VolumeView, Error> {
        wait_while_passing(|| self.snapshot_once(volume, &request)).await
    }

    async fn snapshot_once(
        &self,
        volume: &Name,
        asked: &SnapshotVolume,
    ) -> Result<VolumeView, Hindrance> {
        let name = &asked.name;
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(volume).await?;
        if entry.kind != Kind::Volume {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("`{volume}` is frozen already: snapshots are made of volumes"),
            )
            .with_hint(format!(
                "clone it: {}",
                self.command(&format!("volume clone {volume} NAME"))
            ))
            .into());
        }
        let what = format!("the snapshot `{name}` of `{volume}` was not made");
        let full = |error| self.explain_full(&what, error);
        // A process that keeps it while its data process is away has it open: what its last session left is its own to hear of.
        let is_kept = self
            .reservations
            .exclude(entry.lineage, Access::Read, None)?;
        if !is_kept {
            match self.snapshot_closed(&entry, asked).await {
                Err(error) if error.code == ErrorCode::InUse => {}
                result => return Ok(self.view(result.map_err(full)?)),
            }
        }
        match self.snapshot_open(&entry, asked).await {
            // Open, but not for a guest of ours: it is being closed, or copied.
            Err(error) if error.code == ErrorCode::NotFound => {
                Err(Hindrance::Passing(self.open_elsewhere(&entry)))
            }
            result => Ok(self.view(result.map_err(full)?)),
        }
    }

    /// Who may have a volume open that no guest has.
    pub(super) fn open_elsewhere(&self, volume: &Entry) -> Error {
        let name = &volume.name;
        if self.attachments().has_volume(&self.name, volume.lineage) {
            let message = format!("`{name}` is being closed by another request");
            Error::new(ErrorCode::InUse, message).with_hint("try again in a moment")
        } else {
            let message = format!(
                "`{name}` is in use: an import or export of it goes on, or another process has it open"
            );
            Error::new(ErrorCode::InUse, message).with_hint("wait for its end, or end it")
        }
    }

    async fn snapshot_closed(
        &self,
        volume: &Entry,
        asked: &SnapshotVolume,
    ) -> Result<Entry, Error> {
        let name = &asked.name;
        let request = CatalogueRequest::Snapshot {
            volume: volume.name.clone(),
            name: name.clone(),
            lineage: fresh_lineage()?,
            created: seconds_since_1970(),
            labels: asked.labels.clone(),
        };
        self.change(request, name).await
    }

    async fn snapshot_open(&self, volume: &Entry, asked: &SnapshotVolume) -> Result<Entry, Error> {
        let name = &asked.name;
        let request = CatalogueRequest::PrepareSnapshot {
            volume: volume.name.clone(),
            name: name.clone(),
            lineage: fresh_lineage()?,
            created: seconds_since_1970(),
            labels: asked.labels.clone(),
        };
        match self.catalogue(request).await {
            Err(error) => return Err(self.explain_taken_name(name, error).await),
            Ok(CatalogueReply::Token { token }) => {
                self.tell(
                    Role::Endpoint,
                    &ControlRequest::Snapshot {
                        lineage: volume.lineage,
                        token,
                    },
                )
                .await?;
            }
            Ok(other) => return Err(unexpected_reply(&other)),
        }
        self.lookup(name).await
    }

    /// Another size; a running guest is told, and so are block devices of this host.
    pub(crate) async fn resize(
        &self,
        name: &Name,
        request: ResizeVolume,
    ) -> Result<VolumeView, Error> {
        check_volume_size(request.size)?;
        let view = wait_while_passing(|| self.resize_once(name, &request)).await?;
        let Entry { lineage, size, .. } = view.entry;
        self.grow_local(name, lineage, size).await?;
        Ok(view)
    }

    async fn resize_once(
        &self,
        name: &Name,
        request: &ResizeVolume,
    ) -> Result<VolumeView, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(name).await?;
        if entry.kind != Kind::Volume {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("`{name}` is frozen: only volumes are resized"),
            )
            .with_hint(format!(
                "clone it larger: {}",
                self.command(&format!("volume clone {name} NAME --size SIZE"))
            ))
            .into());
        }
        let attached = self.attachments().has_volume(&self.name, entry.lineage);
        let devices: Vec<HostDevice> = {
            let attachments = self.attachments();
            let of_volume = attachments.of_volume(&self.name, entry.lineage);
            let devices = of_volume.filter_map(|one| self.host_device(one.lineage, &one.endpoint));
            devices.collect()
        };
        for device in &devices {
            device.check_resizes().await?;
        }
        if request.size < entry.size {
            let what = format!(
                "shrinking `{name}` from {} to {} bytes loses the data beyond the new size",
                entry.size, request.size
            );
            if attached {
                return Err(Error::new(
                    ErrorCode::InUse,
                    format!("`{name}` is attached: it can only grow"),
                )
                .with_hint(format!(
                    "detach it first: {}",
                    self.command(&format!("volume detach {name}"))
                ))
                .into());
            }
            if !request.force {
                return Err(Error::new(ErrorCode::Invalid, what)
                    .with_hint("use --force to shrink it all the same")
                    .into());
            }
        }
        if request.size < entry.size
            && self
                .reservations
                .exclude(entry.lineage, Access::Write, None)?
        {
            return Err(Hindrance::Passing(self.open_elsewhere(&entry)));
        }
        let resize = CatalogueRequest::Resize {
            name: name.clone(),
            size: request.size,
            force: request.force,
        };
        let entry = match self.change(resize, name).await {
            Err(error) if error.code == ErrorCode::InUse => {
                return Err(Hindrance::Passing(self.open_elsewhere(&entry)));
            }
            resized => resized
                .map_err(|error| self.explain_full(&format!("`{name}` was not resized"), error))?,
        };
        // A process may have it open over a segment channel.
        let resized = ControlRequest::Resized {
            lineage: entry.lineage,
            size: entry.size,
        };
        match self.tell(Role::Endpoint, &resized).await {
            Err(error) if attached => return Err(error.into()),
            Err(error) => {
                tracing::warn!("`{name}` was resized, but its endpoint was not notified: {error}");
            }
            Ok(()) => {}
        }
        let mut shown = Ok(());
        for device in devices {
            shown = shown.and(device.resize(entry.size).await);
        }
        shown?;
        Ok(self.view(entry))
    }

    /// Other labels, or another policy for a full pool, which a running guest's writes follow at once.
    pub(crate) async fn set(&self, name: &Name, request: SetVolume) -> Result<VolumeView, Error> {
        if request.on_full.is_none() && request.labels.is_empty() {
            let message = format!("nothing to set of `{name}`: neither labels nor on_full");
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(name).await?;
        if let Some(on_full) = request.on_full
            && entry.kind != Kind::Volume
        {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!(
                    "`{name}` is frozen: only volumes have a policy for a full pool of their own"
                ),
            )
            .with_hint(format!(
                "its clones may have another policy: {}",
                self.command(&format!("volume clone {name} NAME --on-full {on_full}"))
            )));
        }
        let set = CatalogueRequest::Set {
            name: name.clone(),
            on_full: request.on_full,
            labels: request.labels,
        };
        let what = format!("`{name}` was not set");
        let set = self.change(set, name).await;
        let entry = set.map_err(|error| self.explain_full(&what, error))?;
        let attached = self.attachments().has_volume(&self.name, entry.lineage);
        if attached && request.on_full.is_some() {
            let told = ControlRequest::OnFull {
                lineage: entry.lineage,
                policy: entry.on_full,
            };
            self.tell(Role::Endpoint, &told).await?;
        }
        Ok(self.view(entry))
    }

    /// Another name; what is attached stays at its path.
    pub(crate) async fn rename(
        &self,
        from: &Name,
        request: RenameVolume,
    ) -> Result<VolumeView, Error> {
        let _one_at_a_time = self.lock_changes().await?;
        // A missing name is found here, with its hint; an import's is held by whoever fills it.
        let entry = self.lookup_whole(from).await?;
        let local = {
            let attachments = self.attachments();
            let mut of_volume = attachments.of_volume(&self.name, entry.lineage);
            of_volume.find(|one| is_local(&one.endpoint)).cloned()
        };
        if let Some(local) = local {
            let message = format!(
                "`{from}` is attached as a file of its name: {}",
                local.endpoint.kind()
            );
            return Err(Error::new(ErrorCode::InUse, message).with_hint(format!(
                "detach it first: {}",
                self.command(&format!("volume detach {from} --id {}", local.id))
            )));
        }
        let rename = CatalogueRequest::Rename {
            from: from.clone(),
            to: request.to.clone(),
        };
        let what = format!("`{from}` was not renamed");
        let renamed = self.change(rename, &request.to).await;
        let entry = renamed.map_err(|error| self.explain_full(&what, error))?;
        self.attachments()
            .rename(&self.name, entry.lineage, &request.to)?;
        Ok(self.view(entry))
    }

    /// Fails with [`ErrorCode::InUse`] if the volume is attached.
    pub(super) fn check_detached(&self, entry: &Entry) -> Result<(), Error> {
        if !self.attachments().has_volume(&self.name, entry.lineage) {
            return Ok(());
        }
        let name = &entry.name;
        let detach = self.command(&format!("volume detach {name}"));
        Err(
            Error::new(ErrorCode::InUse, format!("`{name}` is attached"))
                .with_hint(format!("detach it first: {detach}")),
        )
    }

    /// Forgets a name; what clones still need stays.
    pub(crate) async fn remove(&self, name: &Name) -> Result<(), Error> {
        wait_while_passing(|| self.remove_once(name)).await
    }

    async fn remove_once(&self, name: &Name) -> Result<(), Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup(name).await?;
        self.check_detached(&entry)?;
        if self
            .reservations
            .exclude(entry.lineage, Access::Write, None)?
        {
            return Err(Hindrance::Passing(self.open_elsewhere(&entry)));
        }
        let remove = CatalogueRequest::Remove { name: name.clone() };
        match self.catalogue(remove).await {
            Ok(_removed) => Ok(()),
            Err(error) if error.code == ErrorCode::InUse => {
                Err(Hindrance::Passing(self.open_elsewhere(&entry)))
            }
            Err(error) => {
                let what = format!("`{name}` was not removed");
                Err(self.explain_full(&what, error).into())
            }
        }
    }
}
