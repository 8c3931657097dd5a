//! Serving: sends the recorded attachments to the endpoint, each when it is created, and all of them whenever the endpoint's process has
//! started.

use std::sync::Arc;
use std::time::Duration;

use archipelago_api::types::Attachment;
use archipelago_protocol::catalogue::Entry;
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode, ServedVolume};
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use super::local::is_local;
use super::pool::Pool;

/// Bytes of the serial number that a guest sees.
const SERIAL_LEN: usize = 20;
/// Attachments that are sent to a new endpoint at once: each needs a connection and a thread.
const SERVED_AT_ONCE: usize = 16;
/// First pause before an attachment that could not be served is sent again.
const SERVE_RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest pause: a volume should be served soon after a descriptor or some space became free.
const SERVE_RETRY_MAX: Duration = Duration::from_secs(10);

impl Pool {
    /// Makes the endpoint serve `attachment`. [`Pool::serve_noted`] serves the attachments that this host itself uses.
    pub(super) async fn serve(&self, entry: &Entry, attachment: &Attachment) -> Result<(), Error> {
        if is_local(&attachment.endpoint) {
            return Ok(());
        }
        let mut serial = entry.lineage.to_string();
        serial.truncate(SERIAL_LEN);
        let volume = ServedVolume {
            lineage: entry.lineage,
            size: entry.size,
            object_size: entry.object_size,
            read_only: attachment.read_only,
            serial,
            on_full: entry.on_full,
        };
        if let EndpointSpec::Ublk { device, .. } = attachment.endpoint {
            return self.serve_device(attachment.id, &volume, device).await;
        }
        if let EndpointSpec::NbdDevice { device, socket, .. } = &attachment.endpoint {
            let served = self.serve_nbd_device(attachment.id, &volume, *device, socket);
            return served.await;
        }
        let request = ControlRequest::Attach {
            attachment: attachment.id,
            volume,
            endpoint: attachment.endpoint.clone(),
        };
        self.tell(Role::Endpoint, &request).await
    }

    /// Sends the attached volumes to each incarnation of the endpoint. A new incarnation ends the round of the previous one, so only one
    /// round runs at a time.
    pub(crate) async fn serve_incarnations(
        self: Arc<Self>,
        mut incarnations: watch::Receiver<u64>,
    ) {
        let mut begun = incarnations.changed().await;
        while begun.is_ok() {
            begun = tokio::select! {
                // Polled first: a round for a dead incarnation waits for answers that will never arrive.
                biased;
                begun = incarnations.changed() => begun,
                () = self.serve_until_done() => incarnations.changed().await,
            };
        }
    }

    /// Sends the attachments to the endpoint, and repeats those that it could not serve.
    async fn serve_until_done(&self) {
        let mut wait = SERVE_RETRY_MIN;
        let mut failed = self.serve_all(None).await;
        failed.extend(self.serve_all_local(None, &failed).await);
        while !failed.is_empty() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SERVE_RETRY_MAX);
            let again = self.serve_all(Some(failed.clone())).await;
            let local = self.serve_all_local(Some(failed), &again).await;
            failed = [again, local].concat();
        }
    }

    /// Sends the attachments, or those in `only`, to the endpoint. If one cannot be served, this is logged and it stays recorded. Returns
    /// those that may succeed later.
    pub(crate) async fn serve_all(&self, only: Option<Vec<AttachmentId>>) -> Vec<AttachmentId> {
        let wanted = |attachment: &&Attachment| {
            !is_local(&attachment.endpoint)
                && only
                    .as_ref()
                    .is_none_or(|only| only.contains(&attachment.id))
        };
        let turn = self.lock_changes().await;
        let attachments: Vec<Attachment> = self
            .attachments()
            .of_pool(&self.name)
            .filter(wanted)
            .cloned()
            .collect();
        let _one_at_a_time = match turn {
            Ok(turn) => turn,
            Err(error) => {
                tracing::error!("what is attached is not served: {error}");
                return attachments.iter().map(|one| one.id).collect();
            }
        };
        let all = attachments.len();
        // In parallel, since guests wait.
        let failed: Vec<(AttachmentId, ErrorCode)> = stream::iter(attachments)
            .map(|attachment| async move {
                let failed = self.serve_again(&attachment).await.err();
                failed.map(|error| (attachment.id, error.code))
            })
            .buffer_unordered(SERVED_AT_ONCE)
            .filter_map(|failed| async move { failed })
            .collect()
            .await;
        if all > 0 {
            let incarnation = *self.endpoint_incarnations.borrow();
            let served = all - failed.len();
            tracing::info!(
                "{served} of {all} attached volumes are served (process generation {incarnation} of the endpoint)"
            );
        }
        let may_pass = |code: ErrorCode| {
            !code.is_of_stored() && !matches!(code, ErrorCode::NotFound | ErrorCode::Invalid)
        };
        failed
            .into_iter()
            .filter_map(|(id, code)| may_pass(code).then_some(id))
            .collect()
    }

    async fn serve_again(&self, attachment: &Attachment) -> Result<(), Error> {
        let name = &attachment.name;
        let served = match self.lookup(name).await {
            Ok(entry) if entry.lineage == attachment.lineage => {
                self.serve(&entry, attachment).await
            }
            Ok(_other) => Err(Error::new(
                ErrorCode::NotFound,
                "its name now belongs to another volume",
            )),
            Err(error) => Err(error),
        };
        match &served {
            Ok(()) => tracing::debug!(
                "`{name}` is served at {}",
                attachment.endpoint.path().display()
            ),
            Err(error) => tracing::error!("`{name}` is attached but cannot be served: {error}"),
        }
        served
    }
}
