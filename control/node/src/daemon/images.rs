//! Images: a copy into a map that becomes visible when it is whole.

use std::time::Duration;

use archipelago_api::types::{BeginImport, Bulk, VolumeView};
use archipelago_protocol::catalogue::{CatalogueRequest, Entry, Kind};
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{Access, Error, ErrorCode, Lineage, Name, ObjectSize, OnFull};

use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use crate::fresh::{fresh_lineage, seconds_since_1970};

/// How long the endpoint may take to close a volume whose writer has gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked after.
const CLOSE_STEP: Duration = Duration::from_millis(10);

impl Pool {
    /// Makes an invisible image and opens it for one writer.
    pub(crate) async fn begin_import(&self, request: BeginImport) -> Result<Bulk, Error> {
        let size = check_volume_size(request.size)?;
        wait_while_passing(|| self.begin_import_once(&request, size)).await
    }

    async fn begin_import_once(&self, request: &BeginImport, size: u64) -> Result<Bulk, Hindrance> {
        let name = &request.name;
        let _one_at_a_time = self.lock_changes().await?;
        let lineage = fresh_lineage()?;
        let create = CatalogueRequest::Create {
            name: name.clone(),
            lineage,
            kind: Kind::Importing,
            size,
            object_size: request.object_size.unwrap_or(ObjectSize::DEFAULT),
            created: seconds_since_1970(),
            on_full: OnFull::default(),
            labels: request.labels.clone(),
        };
        match self.catalogue(create.clone()).await {
            Ok(_made) => {}
            Err(error) if error.code == ErrorCode::Exists => {
                self.forget_abandoned(name, error).await?;
                self.catalogue(create).await?;
            }
            Err(error) => {
                let what = format!("`{name}` was not imported");
                return Err(self.explain_full(&what, error).into());
            }
        }
        let socket = self.context.layout.bulk_socket(lineage);
        let open = ControlRequest::OpenBulk {
            lineage,
            write: true,
            on_full: OnFull::Report,
            socket: socket.clone(),
        };
        let opened = match self.grant(lineage, Access::Write).await {
            Ok(()) => self.tell(Role::Endpoint, &open).await,
            Err(error) => Err(error),
        };
        if let Err(error) = opened {
            self.withdraw(lineage).await;
            let remove = CatalogueRequest::Remove { name: name.clone() };
            if let Err(error) = self.catalogue(remove).await {
                tracing::warn!("forgetting the import `{name}`: {error}");
            }
            let what = format!("`{name}` was not imported");
            return Err(self.explain_full(&what, error).into());
        }
        Ok(Bulk {
            lineage,
            size,
            socket,
            uid: self.context.endpoint.map(|user| user.uid),
            reservation: None,
        })
    }

    /// Removes the import that holds `name` if nobody writes it any more.
    async fn forget_abandoned(&self, name: &Name, exists: Error) -> Result<(), Hindrance> {
        let lineage = match self.lookup(name).await {
            Ok(entry) if entry.kind == Kind::Importing => entry.lineage,
            _ => return Err(self.explain_taken_name(name, exists).await.into()),
        };
        match self
            .catalogue(CatalogueRequest::Remove { name: name.clone() })
            .await
        {
            Ok(_removed) => {
                self.withdraw(lineage).await;
                Ok(())
            }
            // Its writer may have ended just now.
            Err(error) if error.code == ErrorCode::InUse => {
                let message = format!("`{name}` is being imported by another command");
                Err(Hindrance::Passing(
                    Error::new(ErrorCode::InUse, message)
                        .with_hint("wait for its end, or choose another name"),
                ))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What has the name `name`, if it is what was begun as `lineage`: an import that was given up has lost its name, perhaps to another.
    async fn lookup_begun(&self, name: &Name, lineage: Lineage) -> Result<Entry, Error> {
        let entry = self.lookup(name).await?;
        if entry.lineage == lineage {
            return Ok(entry);
        }
        let message = format!(
            "this import of `{name}` was given up, and the name now belongs to another volume or image"
        );
        Err(Error::new(ErrorCode::NotFound, message)
            .with_hint("import it again, with another name"))
    }

    /// Makes the filled import `lineage` visible. Its writer has closed it.
    pub(crate) async fn publish(&self, name: &Name, lineage: Lineage) -> Result<VolumeView, Error> {
        let _one_at_a_time = self.lock_changes().await?;
        self.lookup_begun(name, lineage).await?;
        let published = self.catalogue(CatalogueRequest::Publish { name: name.clone() });
        let what = format!("`{name}` was not imported");
        published
            .await
            .map_err(|error| self.explain_full(&what, error))?;
        let image = self.info(name).await?;
        self.withdraw(image.entry.lineage).await;
        Ok(image)
    }

    /// Forgets the import `lineage`.
    pub(crate) async fn abort_import(&self, name: &Name, lineage: Lineage) -> Result<(), Error> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_begun(name, lineage).await?;
        if entry.kind != Kind::Importing {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("`{name}` is not an import in progress"),
            )
            .with_hint(format!(
                "`{} volume remove {name}` removes what is there",
                self.context.layout.command()
            )));
        }
        // Its writer may have gone just now: the endpoint closes the volume first.
        let deadline = tokio::time::Instant::now() + CLOSE_TIMEOUT;
        loop {
            match self
                .catalogue(CatalogueRequest::Remove { name: name.clone() })
                .await
            {
                Err(error)
                    if error.code == ErrorCode::InUse && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(CLOSE_STEP).await;
                }
                Err(error) => return Err(error),
                Ok(_removed) => break,
            }
        }
        self.withdraw(lineage).await;
        Ok(())
    }
}
