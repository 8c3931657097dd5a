//! Grants that change while the pool is served: written down, then told to its blocker and mapper.

use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{Access, Error, Lineage};

use super::grants::Granted;
use super::pool::Pool;

impl Pool {
    /// Lets the endpoint open `lineage`, until [`Pool::withdraw`].
    pub(crate) async fn grant(&self, lineage: Lineage, access: Access) -> Result<(), Error> {
        self.change_grants(|granted| granted.hold(lineage, access))
            .await
    }

    /// Lets the endpoint read `lineage` for a while.
    pub(crate) async fn grant_export(&self, lineage: Lineage) -> Result<(), Error> {
        self.change_grants(|granted| granted.export(lineage)).await
    }

    /// Takes back what [`Pool::grant`] gave. What fails is logged: the endpoint may do more than it should, nobody less.
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
