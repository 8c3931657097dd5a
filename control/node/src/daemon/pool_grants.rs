//! Grants that change while the pool is served: they are stored in a file, then sent to the blocker and the mapper.

use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{Access, Error, Lineage};

use super::grants::Granted;
use super::pool::Pool;
use super::pool_requests::unexpected_reply;

impl Pool {
    /// Permits the endpoint to open `lineage`, until [`Pool::withdraw`].
    pub(crate) async fn grant(&self, lineage: Lineage, access: Access) -> Result<(), Error> {
        self.change_grants(|granted| granted.hold(lineage, access))
            .await
    }

    /// Permits the endpoint to open `lineage` for a process, as long as the process has it open.
    pub(crate) async fn grant_open(&self, lineage: Lineage, access: Access) -> Result<(), Error> {
        if self.context.endpoint.is_none() {
            return Ok(());
        }
        let still_open = match self.ask(Role::Endpoint, &ControlRequest::Status).await? {
            ControlReply::Status(status) => status.channels_to,
            other => return Err(unexpected_reply(&other)),
        };
        self.change_grants(|granted| granted.open(lineage, access, &still_open))
            .await
    }

    /// Withdraws the grant of [`Pool::grant`]. Errors are only logged: the endpoint keeps a right too many, and nothing else is affected.
    pub(crate) async fn withdraw(&self, lineage: Lineage) {
        let withdrawn = self.change_grants(|granted| granted.release(lineage));
        if let Err(error) = withdrawn.await {
            tracing::warn!("{lineage} stays open to the endpoint until the next start: {error}");
        }
    }

    async fn change_grants(&self, change: impl FnOnce(&mut Granted)) -> Result<(), Error> {
        if self.context.endpoint.is_none() {
            return Ok(());
        }
        let grants = {
            let mut granted = self.granted();
            change(&mut granted);
            granted.write()?
        };
        for role in [Role::Blocker, Role::Mapper] {
            let grants = grants.clone();
            self.tell(role, &ControlRequest::Grants { grants }).await?;
        }
        Ok(())
    }
}
