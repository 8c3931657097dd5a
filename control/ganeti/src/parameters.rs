//! Parameters of a disk, as Ganeti passes them on: `--disk 0:size=10G,provider=archipelago,origin=debian12` arrives as `EXTP_ORIGIN`.
//!
//! Ganeti checks no name, upper-cases it, keeps its dashes (`EXTP_OBJECT-SIZE`), and passes all parameters to every script as long as the
//! disk exists. So `create` refuses unknown parameters, and the other scripts read only the access: a parameter that was changed to an
//! illegal value must not prevent a removal.

use std::collections::BTreeMap;

use archipelago_protocol::{Error, ErrorCode, Name, ObjectSize, OnFull};

/// What every variable of a parameter begins with.
pub const PREFIX: &str = "EXTP_";

/// A parameter that a disk may have, for `parameters.list`.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// The name, as in Ganeti's commands.
    pub name: &'static str,
    /// One line of description.
    pub description: &'static str,
}

/// The parameters of this provider.
pub const PARAMETERS: [Parameter; 5] = [
    Parameter {
        name: "origin",
        description: "image or snapshot that the disk begins as; the disk has its own size, at least the origin's",
    },
    Parameter {
        name: "pool",
        description: "pool of the node; left out: the origin's, the only one, or the one named default",
    },
    Parameter {
        name: "object-size",
        description: "size of the volume's objects: a power of two from 64K to 32M",
    },
    Parameter {
        name: "on-full",
        description: "what writes do without space in the pool: wait, wait:SECONDS or report",
    },
    Parameter {
        name: "userspace",
        description: "with access=userspace, how QEMU reaches the disk: vhost-user (the default) or nbd (Ganeti 3.0)",
    },
];

/// Ganeti's own parameters, which arrive in the same way.
const OF_GANETI: [&str; 2] = ["provider", "access"];

/// How an instance accesses its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Through a block device of this host: `access=kernelspace`.
    BlockDevice,
    /// By QEMU over vhost-user, with the wrapper: `access=userspace`.
    VhostUser,
    /// By QEMU's NBD client: `access=userspace,userspace=nbd`.
    Nbd,
}

/// The parameters of a new disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Image or snapshot of which it is a clone.
    pub origin: Option<Name>,
    /// The pool that stores it.
    pub pool: Option<Name>,
    /// Size of its objects in bytes.
    pub object_size: Option<ObjectSize>,
    /// What its writes do in a full pool.
    pub on_full: Option<OnFull>,
    /// How its instance accesses it.
    pub access: Access,
}

/// The parameters of one call, by their names in lower case with dashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    values: BTreeMap<String, String>,
    /// The last parameter that was given in two spellings.
    given_twice: Option<String>,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Invalid, message)
}

impl Parameters {
    /// The parameters in `pairs`, whose names still have their [`PREFIX`]; other variables are ignored.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Parameters {
        let mut parameters = Parameters::default();
        for (variable, value) in pairs {
            let Some(name) = variable.strip_prefix(PREFIX) else {
                continue;
            };
            let name = name.to_ascii_lowercase().replace('_', "-");
            let former = parameters.values.insert(name.clone(), value.to_owned());
            if former.is_some() {
                parameters.given_twice = Some(name);
            }
        }
        parameters
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let parsed = parse(text).map_err(|error| Error {
            message: format!("parameter `{name}`: {}", error.message),
            ..error
        });
        parsed.map(Some)
    }

    /// How the instance accesses the disk.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for an unknown `access`, or an unknown `userspace`.
    pub fn access(&self) -> Result<Access, Error> {
        match self.get("access") {
            None | Some("kernelspace") => Ok(Access::BlockDevice),
            Some("userspace") => self.userspace(),
            Some(other) => Err(invalid(format!(
                "parameter `access`: `{other}` is neither kernelspace nor userspace"
            ))),
        }
    }

    fn userspace(&self) -> Result<Access, Error> {
        match self.get("userspace") {
            None | Some("vhost-user") => Ok(Access::VhostUser),
            Some("nbd") => Ok(Access::Nbd),
            Some(other) => Err(invalid(format!(
                "parameter `userspace`: `{other}` is neither vhost-user nor nbd"
            ))),
        }
    }

    /// The parameters of a new disk.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`], naming the parameter that is unknown, given in two spellings, or has an illegal value.
    pub fn new_disk(&self) -> Result<NewDisk, Error> {
        if let Some(name) = &self.given_twice {
            return Err(invalid(format!("parameter `{name}` is given twice")));
        }
        self.userspace()?;
        let known = |name: &str| {
            OF_GANETI.contains(&name) || PARAMETERS.iter().any(|known| known.name == name)
        };
        if let Some(unknown) = self.values.keys().find(|name| !known(name)) {
            let names: Vec<&str> = PARAMETERS.iter().map(|known| known.name).collect();
            return Err(
                invalid(format!("there is no parameter `{unknown}` of a disk"))
                    .with_hint(format!("known: {}", names.join(", "))),
            );
        }
        Ok(NewDisk {
            origin: self.parsed("origin", str::parse)?,
            pool: self.parsed("pool", str::parse)?,
            object_size: self.parsed("object-size", object_size)?,
            on_full: self.parsed("on-full", str::parse)?,
            access: self.access()?,
        })
    }
}

/// Bytes, or a number with K or M.
fn object_size(text: &str) -> Result<ObjectSize, Error> {
    let refused = || {
        invalid(format!(
            "`{text}` is not a size of objects: a power of two from 64K to 32M"
        ))
    };
    let unit_at = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        _ => return Err(refused()),
    };
    let number: u64 = digits.parse().map_err(|_not_in_range| refused())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(refused)?;
    ObjectSize::try_from(bytes).map_err(|_not_legal| refused())
}

/// The content of the file `parameters.list`: the name and description of each parameter, one a line.
#[must_use]
pub fn parameters_list() -> String {
    let line = |parameter: &Parameter| format!("{} {}\n", parameter.name, parameter.description);
    PARAMETERS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        Parameters::new(pairs.iter().copied())
    }

    #[test]
    fn a_disk_is_what_its_parameters_say_in_either_spelling() {
        for object_size in ["EXTP_OBJECT-SIZE", "EXTP_OBJECT_SIZE"] {
            let disk = parameters(&[
                ("EXTP_PROVIDER", "archipelago"),
                ("EXTP_ACCESS", "userspace"),
                ("EXTP_ORIGIN", "debian12"),
                ("EXTP_POOL", "fast"),
                (object_size, "1M"),
                ("EXTP_ON-FULL", "wait:5"),
                ("EXTP_USERSPACE", "nbd"),
                ("VOL_NAME", "v"),
            ]);
            let expected = NewDisk {
                origin: Some("debian12".parse().unwrap()),
                pool: Some("fast".parse().unwrap()),
                object_size: Some(ObjectSize::try_from(1 << 20).unwrap()),
                on_full: Some("wait:5".parse().unwrap()),
                access: Access::Nbd,
            };
            assert_eq!(disk.new_disk(), Ok(expected));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_name() {
        for (name, value, word) in [
            ("EXTP_BOGUS", "1", "`bogus`"),
            ("EXTP_ORIGINS", "a", "`origins`"),
            ("EXTP_", "a", "``"),
            ("EXTP_ORIGIN", "../x", "`origin`"),
            ("EXTP_ORIGIN", "", "`origin`"),
            ("EXTP_POOL", "a b", "`pool`"),
            ("EXTP_OBJECT-SIZE", "3M", "`object-size`"),
            ("EXTP_OBJECT-SIZE", "18446744073709551615M", "`object-size`"),
            ("EXTP_OBJECT-SIZE", "", "`object-size`"),
            ("EXTP_OBJECT-SIZE", "1G", "`object-size`"),
            ("EXTP_ON_FULL", "never", "`on-full`"),
            ("EXTP_USERSPACE", "iscsi", "`userspace`"),
            ("EXTP_ACCESS", "both", "`access`"),
        ] {
            let error = parameters(&[(name, value)]).new_disk().unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid);
            assert!(error.message.contains(word), "{name}: {}", error.message);
        }
        let twice = parameters(&[("EXTP_ON-FULL", "wait"), ("EXTP_ON_FULL", "wait")]);
        let error = twice.new_disk().unwrap_err();
        assert!(
            error.message.contains("`on-full` is given twice"),
            "{error}"
        );
    }

    #[test]
    fn access_alone_needs_no_other_parameter_to_be_right() {
        for (pairs, expected) in [
            (vec![], Access::BlockDevice),
            (vec![("EXTP_ACCESS", "kernelspace")], Access::BlockDevice),
            (vec![("EXTP_ACCESS", "userspace")], Access::VhostUser),
            (
                vec![("EXTP_ACCESS", "kernelspace"), ("EXTP_USERSPACE", "nbd")],
                Access::BlockDevice,
            ),
            (
                vec![("EXTP_ACCESS", "userspace"), ("EXTP_BOGUS", "1")],
                Access::VhostUser,
            ),
            // What was changed after the disk was made.
            (vec![("EXTP_USERSPACE", "iscsi")], Access::BlockDevice),
            (
                vec![("EXTP_ON-FULL", "wait"), ("EXTP_ON_FULL", "report")],
                Access::BlockDevice,
            ),
            (
                vec![
                    ("EXTP_ACCESS", "userspace"),
                    ("EXTP_USERSPACE", "vhost-user"),
                ],
                Access::VhostUser,
            ),
        ] {
            assert_eq!(parameters(&pairs).access(), Ok(expected), "{pairs:?}");
        }
    }

    /// Ganeti splits each line at its first blanks, and fails on an empty one.
    #[test]
    fn each_line_of_the_list_has_a_name_and_a_description() {
        let text = parameters_list();
        assert!(text.ends_with('\n'));
        assert_eq!(text.lines().count(), PARAMETERS.len());
        for line in text.lines() {
            let (name, description) = line.split_once(' ').unwrap();
            assert!(!name.is_empty() && !description.trim().is_empty());
        }
    }
}
