//! The section `[endpoint]`: the user of the endpoint's process, and the rights of that user.
//!
//! This module checks only the form of the section; the daemon checks that the accounts exist.

use archipelago_protocol::Error;

use super::account::Account;
use super::section::Section;

/// The section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The user.
    pub user: Account,
    /// A group whose members may connect to the sockets of volumes; if it is missing, only the user and root may.
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
