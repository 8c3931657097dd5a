//! Volumes, snapshots and images that one process has open over a segment channel: exports, mounts, anybody's program.
//!
//! The endpoint knows when such a channel ends, not the daemon: nothing of it is written down, and a process that dies leaves nothing.
//! A process that asks for that keeps the volume while the endpoint is away: `reservations`.

use archipelago_api::types::{Bulk, OpenVolume};
use archipelago_protocol::catalogue::{Entry, Kind};
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{Access, Error, ErrorCode, Name, OnFull};

use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use super::reservations::lineage_of;
use crate::fresh::fresh_lineage;

fn access_of(request: &OpenVolume) -> Access {
    match request.read_only {
        true => Access::Read,
        false => Access::Write,
    }
}

impl Pool {
    /// Opens something for one reader, which copies it.
    pub(crate) async fn begin_export(&self, name: &Name) -> Result<Bulk, Error> {
        let in_use = |_: &Entry| {
            let message = format!(
                "`{name}` is in use: it is attached or open to write, and would change while it is copied"
            );
            Error::new(ErrorCode::InUse, message).with_hint(format!(
                "export a snapshot of it: `{} volume snapshot {name} NAME`",
                self.context.layout.command()
            ))
        };
        let once = OpenVolume {
            read_only: true,
            ..OpenVolume::default()
        };
        wait_while_passing(|| self.open_once(name, &once, in_use)).await
    }

    /// Opens something for one process.
    pub(crate) async fn open(&self, name: &Name, request: OpenVolume) -> Result<Bulk, Error> {
        let access = access_of(&request);
        let in_use = |entry: &Entry| self.used_by_another(entry, access);
        wait_while_passing(|| self.open_once(name, &request, in_use)).await
    }

    async fn open_once(
        &self,
        name: &Name,
        request: &OpenVolume,
        in_use: impl Fn(&Entry) -> Error,
    ) -> Result<Bulk, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(name).await?;
        let access = access_of(request);
        let write = access == Access::Write;
        let own = request.reservation.as_deref();
        let own_lineage = own.and_then(lineage_of);
        if own_lineage.is_some_and(|lineage| lineage != entry.lineage) {
            // Renamed while its data process was away: whoever keeps it looks for its new name.
            let message = format!("`{name}` is another volume now");
            return Err(Error::new(ErrorCode::NotFound, message).into());
        }
        if write && entry.kind != Kind::Volume {
            let message = format!("`{name}` is frozen: it is opened only to be read");
            return Err(Error::new(ErrorCode::ReadOnly, message)
                .with_hint(format!(
                    "or open a clone of it: `{} volume clone {name} NAME`",
                    self.context.layout.command()
                ))
                .into());
        }
        let kept = own
            .map(|own| self.access_kept(entry.lineage, own))
            .transpose()?;
        if self.reservations.exclude(entry.lineage, access, own)? {
            return Err(Hindrance::Passing(in_use(&entry)));
        }
        self.grant_open(entry.lineage, access).await?;
        let socket = self.context.layout.bulk_socket(fresh_lineage()?);
        let open = ControlRequest::OpenBulk {
            lineage: entry.lineage,
            write,
            on_full: if write { entry.on_full } else { OnFull::Report },
            socket: socket.clone(),
        };
        match self.tell(Role::Endpoint, &open).await {
            Ok(()) => Ok(Bulk {
                lineage: entry.lineage,
                size: entry.size,
                socket,
                uid: self.context.endpoint.map(|user| user.uid),
                reservation: match request.keep && kept < Some(access) {
                    true => self.reserve(entry.lineage, access),
                    false => None,
                },
            }),
            Err(error) if error.code == ErrorCode::InUse => Err(Hindrance::Passing(in_use(&entry))),
            Err(error) => Err(self.explain_damage(entry.lineage, error).await.into()),
        }
    }

    /// Why a process cannot have what somebody else has.
    fn used_by_another(&self, entry: &Entry, access: Access) -> Error {
        let name = &entry.name;
        let command = self.context.layout.command();
        let attached = self.attachments().has_volume(&self.name, entry.lineage);
        let message = if attached {
            format!("`{name}` is in use: it is attached")
        } else {
            format!("`{name}` is in use: another process has it open, or copies it")
        };
        let hint = match (access, attached) {
            (Access::Read, _) => {
                format!("read a snapshot of it: `{command} volume snapshot {name} NAME`")
            }
            (Access::Write, true) => format!("detach it first: `{command} volume detach {name}`"),
            (Access::Write, false) => "wait for its end, or end it".to_owned(),
        };
        Error::new(ErrorCode::InUse, message).with_hint(hint)
    }
}
