//! Which users may connect to a listener, and in which role.
//!
//! Invariants
//! - The user of a connection is reported by the kernel (`SO_PEERCRED`); the client claims a role, and the admission lists the users that
//!   may claim it.
//! - The callers define the meaning of a role. In this module, a role is a number.

use std::collections::BTreeMap;

use nix::unistd::geteuid;

/// A set of roles, one bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Roles([u64; 4]);

impl Roles {
    fn new(roles: impl IntoIterator<Item = u8>) -> Roles {
        let mut set = Roles::default();
        for role in roles {
            set.0[usize::from(role >> 6)] |= 1 << (role & 63);
        }
        set
    }

    fn has(self, role: u8) -> bool {
        self.0[usize::from(role >> 6)] >> (role & 63) & 1 == 1
    }
}

/// Which users may connect, and in which roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    own: Roles,
    others: BTreeMap<u32, Roles>,
}

impl Admission {
    /// Admits only this user and root, in any of `roles`.
    pub fn own(roles: impl IntoIterator<Item = u8>) -> Admission {
        Admission {
            own: Roles::new(roles),
            others: BTreeMap::new(),
        }
    }

    /// Also admits the user `uid`, in any of `roles`.
    #[must_use]
    pub fn and(mut self, uid: u32, roles: impl IntoIterator<Item = u8>) -> Admission {
        self.others.insert(uid, Roles::new(roles));
        self
    }

    /// Whether users besides this one and root are admitted.
    pub(crate) fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// The roles of `uid`; `None`: the user is not admitted.
    fn roles(&self, uid: u32) -> Option<Roles> {
        if is_own(uid) {
            return Some(self.own);
        }
        self.others.get(&uid).copied()
    }

    pub(crate) fn admits_user(&self, uid: u32) -> bool {
        self.roles(uid).is_some()
    }

    pub(crate) fn admits(&self, uid: u32, role: u8) -> bool {
        self.roles(uid).is_some_and(|roles| roles.has(role))
    }
}

/// Whether `uid` is this process's own user, or root: these could control this process in any case.
pub(crate) fn is_own(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_admitted_in_the_roles_that_were_granted_and_in_no_other() {
        let stranger = geteuid().as_raw() + 1;
        let admission = Admission::own([0, 63, 64, 255]).and(stranger, [64]);
        for uid in [0, geteuid().as_raw()] {
            for role in 0..=255 {
                let granted = [0, 63, 64, 255].contains(&role);
                assert_eq!(admission.admits(uid, role), granted, "{uid} as {role}");
            }
        }
        for role in 0..=255 {
            assert_eq!(admission.admits(stranger, role), role == 64, "as {role}");
            assert!(!admission.admits(stranger + 1, role));
        }
        assert!(admission.admits_user(stranger));
        assert!(!admission.admits_user(stranger + 1));
        assert!(admission.has_others());
        assert!(!Admission::own([0]).has_others());
    }
}
