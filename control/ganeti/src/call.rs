//! A call of Ganeti: the name of the script and the environment, parsed once into a checked value.
//!
//! The variables are those of ganeti-extstorage-interface(7). Other variables are ignored: that page promises a clean environment, but
//! Ganeti's node daemon passes its own environment with these variables added.

use std::collections::BTreeMap;
use std::ffi::OsString;

use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{Error, ErrorCode, Name};

use crate::parameters::{Access, NewDisk, PREFIX, Parameters};

/// Longest `VOL_METADATA`: Ganeti cuts it there.
const METADATA_LEN_MAX: usize = 128;
/// Prefix of `VOL_METADATA`: Ganeti's `originstname+`.
const METADATA_PREFIX: &str = "originstname+";
/// Ganeti's sizes are MiB.
const MIB: u64 = 1 << 20;

/// A script of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the interface's")]
pub enum Action {
    Create,
    Attach,
    Detach,
    Remove,
    Grow,
    SetInfo,
    Verify,
    Snapshot,
    Open,
    Close,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 10] = [
        Action::Create,
        Action::Attach,
        Action::Detach,
        Action::Remove,
        Action::Grow,
        Action::SetInfo,
        Action::Verify,
        Action::Snapshot,
        Action::Open,
        Action::Close,
    ];

    /// The script's file name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Attach => "attach",
            Action::Detach => "detach",
            Action::Remove => "remove",
            Action::Grow => "grow",
            Action::SetInfo => "setinfo",
            Action::Verify => "verify",
            Action::Snapshot => "snapshot",
            Action::Open => "open",
            Action::Close => "close",
        }
    }

    /// The script that has the file name `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Action> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// The owner of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The instance.
    pub instance: String,
    /// Number of the disk when it was made; `None` if the volume's name does not contain one.
    pub disk: Option<u32>,
}

/// How an open disk is shared with other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// By this node alone.
    Exclusive,
    /// By two, while an instance moves.
    Shared,
}

/// What a call requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Makes a volume.
    Create {
        /// Its name.
        volume: Name,
        /// Bytes.
        size: u64,
        /// Parameters of the new disk.
        disk: NewDisk,
    },
    /// Makes it accessible on this host, and returns its address.
    Attach {
        /// Its name.
        volume: Name,
        /// How its user accesses it.
        access: Access,
    },
    /// Ends its attachments.
    Detach {
        /// Its name.
        volume: Name,
    },
    /// Removes it.
    Remove {
        /// Its name.
        volume: Name,
    },
    /// Makes it larger.
    Grow {
        /// Its name.
        volume: Name,
        /// Its new size in bytes.
        size: u64,
    },
    /// Labels it with its owner.
    SetInfo {
        /// Its name.
        volume: Name,
        /// The owner.
        owner: Owner,
    },
    /// Checks that the node serves its pools.
    Verify,
    /// Makes a snapshot.
    Snapshot {
        /// The volume's name.
        volume: Name,
        /// The snapshot's name.
        snapshot: Name,
    },
    /// Checks that it can be used.
    Open {
        /// Its name.
        volume: Name,
        /// Whether another node has it open too.
        sharing: Sharing,
    },
    /// Checks that it is there.
    Close {
        /// Its name.
        volume: Name,
    },
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Invalid, message)
}

/// The variables of the interface that are set.
struct Variables {
    values: BTreeMap<String, String>,
}

impl Variables {
    fn new(all: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Variables, Error> {
        let mut values = BTreeMap::new();
        for (name, value) in all {
            // No variable of the interface has such a name.
            let Ok(name) = name.into_string() else {
                continue;
            };
            if !name.starts_with("VOL_") && !name.starts_with(PREFIX) {
                continue;
            }
            let value = value
                .into_string()
                .map_err(|value| invalid(format!("{name}: {} is not UTF-8", value.display())))?;
            values.insert(name, value);
        }
        Ok(Variables { values })
    }

    fn get(&self, name: &str) -> Result<&str, Error> {
        let value = self.values.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty()).ok_or_else(|| {
            invalid(format!("{name} is not set")).with_hint(
                "Ganeti sets it for its external storage providers; people use the archipelago command",
            )
        })
    }

    fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Error>,
    ) -> Result<T, Error> {
        parse(self.get(name)?).map_err(|error| Error {
            message: format!("{name}: {}", error.message),
            ..error
        })
    }

    fn volume(&self) -> Result<Name, Error> {
        self.parsed("VOL_NAME", str::parse)
    }

    fn parameters(&self) -> Parameters {
        let pairs = self.values.iter();
        Parameters::new(pairs.map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

impl Call {
    /// The call of `action` with the environment `variables`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`], naming the variable that is missing or has an illegal value.
    pub fn parse(
        action: Action,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Call, Error> {
        let variables = Variables::new(variables)?;
        Ok(match action {
            Action::Create => Call::Create {
                volume: variables.volume()?,
                size: variables.parsed("VOL_SIZE", bytes)?,
                disk: variables.parameters().new_disk()?,
            },
            Action::Attach => Call::Attach {
                volume: variables.volume()?,
                access: variables.parameters().access()?,
            },
            Action::Detach => Call::Detach {
                volume: variables.volume()?,
            },
            Action::Remove => Call::Remove {
                volume: variables.volume()?,
            },
            Action::Grow => Call::Grow {
                volume: variables.volume()?,
                size: variables.parsed("VOL_NEW_SIZE", bytes)?,
            },
            Action::SetInfo => {
                let volume = variables.volume()?;
                let instance = variables.parsed("VOL_METADATA", instance)?;
                let disk = disk_number(&volume);
                let owner = Owner { instance, disk };
                Call::SetInfo { volume, owner }
            }
            Action::Verify => Call::Verify,
            Action::Snapshot => Call::Snapshot {
                volume: variables.volume()?,
                snapshot: variables.parsed("VOL_SNAPSHOT_NAME", str::parse)?,
            },
            Action::Open => Call::Open {
                volume: variables.volume()?,
                sharing: variables.parsed("VOL_OPEN_EXCLUSIVE", sharing)?,
            },
            Action::Close => Call::Close {
                volume: variables.volume()?,
            },
        })
    }

    /// The volume that the call is about.
    #[must_use]
    pub fn volume(&self) -> Option<&Name> {
        match self {
            Call::Create { volume, .. }
            | Call::Attach { volume, .. }
            | Call::Detach { volume }
            | Call::Remove { volume }
            | Call::Grow { volume, .. }
            | Call::SetInfo { volume, .. }
            | Call::Snapshot { volume, .. }
            | Call::Open { volume, .. }
            | Call::Close { volume } => Some(volume),
            Call::Verify => None,
        }
    }
}

/// MiB in digits, as bytes.
fn bytes(text: &str) -> Result<u64, Error> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u64>().ok().filter(|_| is_number);
    let bytes = number.and_then(|mebibytes| mebibytes.checked_mul(MIB));
    let bytes = bytes.ok_or_else(|| invalid(format!("`{text}` is not a number of MiB")))?;
    check_volume_size(bytes)
}

/// The instance of a `VOL_METADATA`.
fn instance(text: &str) -> Result<String, Error> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+.".contains(&byte);
    let name = text.strip_prefix(METADATA_PREFIX).unwrap_or_default();
    if name.is_empty() || text.len() > METADATA_LEN_MAX || !text.bytes().all(legal) {
        return Err(invalid(format!(
            "{text:?} is not {METADATA_PREFIX}INSTANCE, up to {METADATA_LEN_MAX} of A-Z a-z 0-9 - _ + ."
        )));
    }
    Ok(name.to_owned())
}

/// The number that Ganeti puts at the end of a disk's name: `UUID.ext.disk0`.
pub(crate) fn disk_number(volume: &Name) -> Option<u32> {
    let (_, number) = volume.as_str().rsplit_once(".disk")?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

/// Python's spelling of a truth value.
fn sharing(text: &str) -> Result<Sharing, Error> {
    match text {
        "True" => Ok(Sharing::Exclusive),
        "False" => Ok(Sharing::Shared),
        _ => Err(invalid(format!("`{text}` is neither True nor False"))),
    }
}

#[cfg(test)]
mod tests;
