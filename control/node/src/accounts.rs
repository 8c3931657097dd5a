//! The user of the endpoint's process. When a daemon starts, it checks that the accounts of the configuration exist.

use archipelago_api::config::{Account, CORRECT_IT, Endpoint};
use archipelago_host::Identity;
use archipelago_protocol::{Error, ErrorCode};
use nix::unistd::{Gid, Group, Uid, User, geteuid};

/// Looks up the accounts, for a process that will run as this user.
///
/// # Errors
/// [`ErrorCode::Invalid`] with the key of the configuration, if the account does not exist or belongs to root, or if this process is not
/// root's and cannot change its user.
pub(crate) fn identity(endpoint: &Endpoint) -> Result<Identity, Error> {
    let own = geteuid();
    if !own.is_root() {
        let why = format!(
            "only a daemon of root starts a process of another user, and this one runs as {own}"
        );
        return Err(refused("user", &endpoint.user, &why));
    }
    let known = match &endpoint.user {
        Account::Name(name) => User::from_name(name),
        Account::Id(id) => User::from_uid(Uid::from_raw(*id)),
    };
    let known = known.map_err(|errno| failed("user", &endpoint.user, errno))?;
    let (uid, own_group) = match (&endpoint.user, known) {
        (_, Some(user)) => (user.uid.as_raw(), user.gid.as_raw()),
        (Account::Id(id), None) => (*id, *id),
        (Account::Name(_), None) => {
            return Err(refused("user", &endpoint.user, "there is no such user"));
        }
    };
    if uid == 0 {
        let why = "it must be an unprivileged user";
        return Err(refused("user", &endpoint.user, why));
    }
    Ok(Identity {
        uid,
        gid: own_group,
        front_ends: endpoint.group.as_ref().map(gid).transpose()?,
    })
}

fn gid(group: &Account) -> Result<u32, Error> {
    let known = match group {
        Account::Id(id) => return Ok(*id),
        Account::Name(name) => Group::from_name(name),
    };
    known
        .map_err(|errno| failed("group", group, errno))?
        .map(|group| Gid::as_raw(group.gid))
        .ok_or_else(|| refused("group", group, "there is no such group"))
}

fn refused(key: &str, account: &Account, why: &str) -> Error {
    Error::new(
        ErrorCode::Invalid,
        format!("endpoint.{key} = {account}: {why}"),
    )
    .with_hint(CORRECT_IT)
}

fn failed(key: &str, account: &Account, errno: nix::errno::Errno) -> Error {
    Error::new(
        ErrorCode::Io,
        format!("endpoint.{key} = {account}: looking it up: {errno}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(user: Account, group: Option<Account>) -> Endpoint {
        Endpoint { user, group }
    }

    #[test]
    fn an_account_that_cannot_be_taken_on_is_named_with_the_reason() {
        if !geteuid().is_root() {
            let error = identity(&endpoint(Account::Id(1), None)).unwrap_err();
            assert!(error.message.contains("only a daemon of root"), "{error}");
            return;
        }
        let cases = [
            (
                endpoint(Account::Name("no-such-user".to_owned()), None),
                "endpoint.user = \"no-such-user\": there is no such user",
            ),
            (
                endpoint(Account::Name("root".to_owned()), None),
                "endpoint.user = \"root\": it must be an unprivileged user",
            ),
            (
                endpoint(
                    Account::Id(64_001),
                    Some(Account::Name("no-such-group".to_owned())),
                ),
                "endpoint.group = \"no-such-group\": there is no such group",
            ),
        ];
        for (endpoint, expected) in cases {
            let error = identity(&endpoint).unwrap_err();
            assert_eq!(
                (error.code, error.message.as_str()),
                (ErrorCode::Invalid, expected)
            );
        }
    }

    #[test]
    fn a_number_that_the_system_does_not_know_is_its_own_group() {
        if !geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let expected = Identity {
            uid: 64_001,
            gid: 64_001,
            front_ends: None,
        };
        let alone = endpoint(Account::Id(64_001), None);
        assert_eq!(identity(&alone).unwrap(), expected);
        let shared = endpoint(Account::Id(64_001), Some(Account::Id(64_002)));
        assert_eq!(
            identity(&shared).unwrap(),
            Identity {
                front_ends: Some(64_002),
                ..expected
            }
        );
    }
}
