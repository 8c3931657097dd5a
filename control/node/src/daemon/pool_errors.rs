//! What the errors of a pool's data processes mean for people: which storage, volume or resource it is, and what to do.

use archipelago_protocol::control::Wait;
use archipelago_protocol::error::TOO_LARGE_HINT;
use archipelago_protocol::{Error, ErrorCode, Lineage, Name};

use super::pool::Pool;

impl Pool {
    /// Describes the hung call `wait` for people.
    pub(crate) fn describe_hung_call(&self, wait: &Wait) -> String {
        let name = self
            .attachments()
            .of_volume(&self.name, wait.lineage)
            .next()
            .map(|it| it.name.clone());
        let volume = name.map_or_else(String::new, |name| format!("volume `{name}`: "));
        format!(
            "{volume}{} has not returned for {} s",
            wait.what, wait.seconds
        )
    }

    /// Why a request fails that waits for the hung call `wait`.
    pub(super) fn hung_call_error(&self, wait: &Wait) -> Error {
        let message = format!(
            "the storage of pool `{}` does not answer: {}",
            self.name,
            self.describe_hung_call(wait)
        );
        Error::new(ErrorCode::Unavailable, message).with_hint(format!(
            "the request may still be carried out when the storage answers; `{} node status` shows the call that hangs",
            self.context.layout.command()
        ))
    }

    /// Replaces an error of something stored that names no object by the mapper's error, which names it.
    pub(crate) async fn explain_damage(&self, lineage: Lineage, error: Error) -> Error {
        if !error.code.is_of_stored() {
            return error;
        }
        self.damage(lineage).await.unwrap_or(error)
    }

    /// Adds to an [`ErrorCode::Exists`] of `name` a hint at what has this name: listings do not show an import.
    pub(crate) async fn explain_taken_name(&self, name: &Name, error: Error) -> Error {
        if error.code != ErrorCode::Exists || !error.hint.is_empty() {
            return error;
        }
        match self.lookup_whole(name).await {
            Err(importing) if importing.code == ErrorCode::InUse => Error {
                hint: format!("{}; {}", importing.message, importing.hint),
                ..error
            },
            _ => {
                let command = self.context.layout.command();
                error.with_hint(format!(
                    "choose another name; `{command} volume info {name}` shows what has it"
                ))
            }
        }
    }

    /// Explains the failure of a change because a resource (space, descriptors, memory) has run out: `what` was not done, which
    /// resource is missing and where, and what to do. Other errors are returned as they are.
    pub(crate) fn explain_full(&self, what: &str, error: Error) -> Error {
        let (pool, place) = (&self.name, self.config.place());
        let directory = place.display();
        let command = self.context.layout.command();
        let (why, hint) = match error.code {
            ErrorCode::NoSpace if self.config.directory().is_none() => (
                format!("pool `{pool}` is full ({directory})"),
                format!(
                    "remove volumes, add storage to the cluster, or raise the quota of its pool; `{command} pool info {pool}` shows what is free"
                ),
            ),
            ErrorCode::NoSpace => (
                format!("the file system of pool `{pool}` is full ({directory})"),
                format!(
                    "free space there, or grow the file system, and try again; `{command} pool info {pool}` shows what is free"
                ),
            ),
            ErrorCode::NoDescriptors => (
                format!("the processes of pool `{pool}` have no file descriptor left"),
                format!(
                    "raise LimitNOFILE of the service, or detach volumes; `{command} node status` shows how many are allowed"
                ),
            ),
            ErrorCode::NoMemory => (
                "the host has no memory for it".to_owned(),
                "free memory, or raise the limit of the service, and try again".to_owned(),
            ),
            ErrorCode::NoRunSpace => (
                format!(
                    "the run directory is full ({})",
                    self.context.layout.run().display()
                ),
                "free space there, and try again".to_owned(),
            ),
            ErrorCode::TooLarge => (
                format!("a file of pool `{pool}` ({directory}) may not get so large"),
                TOO_LARGE_HINT.to_owned(),
            ),
            _ => return error,
        };
        tracing::warn!("{what}: {error}");
        Error::new(error.code, format!("{what}: {why}")).with_hint(hint)
    }
}
