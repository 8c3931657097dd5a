//! The name of a pool's owner record: it holds everything that a takeover decision needs, so one rename changes the owner atomically.
//!
//! `owner/INCARNATION-MACHINE-BOOT-DEVICE-NAMESPACE-PROCESS`, hexadecimal, of one length. The directory has no other entry, so a second
//! name always fits: also without a free block on xfs, which keeps two such names in the directory's inode. A pool without an owner has
//! zeros after the incarnation.

use std::fmt;

/// Digits of the fields: an incarnation, a place's five.
const DIGITS: [usize; 6] = [8, 8, 16, 8, 8, 8];

/// Where the owner of a pool runs. A number that is 0 is unknown, and equal to no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The host; the same after reboots.
    pub(crate) machine: u32,
    /// The running kernel.
    pub(crate) boot: u64,
    /// The file system's number there: a file system in use keeps it, and no other one has it.
    pub(crate) device: u32,
    /// The namespace of `process`.
    pub(crate) namespace: u32,
    pub(crate) process: u32,
}

/// The name of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Grows by one with each owner.
    pub(crate) incarnation: u32,
    /// `None`: the pool has no owner.
    pub(crate) place: Option<Place>,
}

impl Name {
    /// The name of a pool's first record.
    pub(crate) const FIRST: Name = Name {
        incarnation: 0,
        place: None,
    };

    /// The same record after its owner has released the pool.
    pub(crate) fn released(self) -> Name {
        Name {
            place: None,
            ..self
        }
    }

    /// The record of the next owner; `None` if the numbers are used up, which does not happen in practice.
    pub(crate) fn succeeded_by(self, place: Place) -> Option<Name> {
        Some(Name {
            incarnation: self.incarnation.checked_add(1)?,
            place: Some(place),
        })
    }

    /// Parses a name; `None` if `text` is not one.
    pub(crate) fn parse(text: &str) -> Option<Name> {
        let mut fields = text.split('-');
        let mut values = [0_u64; DIGITS.len()];
        for (value, digits) in values.iter_mut().zip(DIGITS) {
            let field = fields.next()?;
            let legal = field.len() == digits
                && field
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            *value = legal
                .then(|| u64::from_str_radix(field, 16).ok())
                .flatten()?;
        }
        if fields.next().is_some() {
            return None;
        }
        let [incarnation, machine, boot, device, namespace, process] = values;
        let short = |value: u64| u32::try_from(value).ok();
        let place = Place {
            machine: short(machine)?,
            boot,
            device: short(device)?,
            namespace: short(namespace)?,
            process: short(process)?,
        };
        Some(Name {
            incarnation: short(incarnation)?,
            // Every process has an id that is not 0.
            place: (place.process != 0).then_some(place),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, boot, device, namespace, process) =
            self.place.map_or((0, 0, 0, 0, 0), |place| {
                (
                    place.machine,
                    place.boot,
                    place.device,
                    place.namespace,
                    place.process,
                )
            });
        write!(
            f,
            "{:08x}-{machine:08x}-{boot:016x}-{device:08x}-{namespace:08x}-{process:08x}",
            self.incarnation
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        machine: u32::MAX,
        boot: 2,
        device: 3,
        namespace: u32::MAX,
        process: 5,
    };

    #[test]
    fn names_are_read_as_they_are_written_and_have_one_length() {
        let second = Name::FIRST.succeeded_by(PLACE).unwrap();
        for name in [Name::FIRST, second, second.released()] {
            let text = name.to_string();
            assert_eq!(Name::parse(&text), Some(name));
            assert_eq!(text.len(), Name::FIRST.to_string().len());
        }
        assert_eq!(
            second.to_string(),
            "00000001-ffffffff-0000000000000002-00000003-ffffffff-00000005"
        );
        assert_eq!(second.released().incarnation, 1);
        let last = Name {
            incarnation: u32::MAX,
            place: None,
        };
        assert_eq!(last.succeeded_by(PLACE), None);
    }

    #[test]
    fn other_names_are_no_records() {
        let name = Name::FIRST.to_string();
        for text in [
            "",
            "lock",
            &name[1..],
            &name[..name.len() - 1],
            &format!("{name}0"),
            &format!("{name}-0"),
            &name.replace('0', "G"),
            &name.replace('0', "A"),
        ] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }
}
