//! The section `[endpoint]`: whom the endpoint's process runs as, and what that user may do.
//!
//! What stands in the file is checked here for its form; whether the system knows the accounts is for the daemon to ask.

use archipelago_protocol::Error;

use super::account::Account;
use super::section::Section;

/// The section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The user.
    pub user: Account,
    /// Whose members may connect to the sockets of volumes; without it only the user and root may.
    pub group: Option<Account>,
}

impl Endpoint {
    /// Checks the section's keys.
    pub(super) fn parse(mut section: Section) -> Result<Endpoint, Error> {
        let Some(user) = section.account("user")? else {
            return Err(section.missing("user", "the name or number of a user"));
        };
        let group = section.account("group")?;
        section.finish(&["user", "group"])?;
        Ok(Endpoint { user, group })
    }
}
