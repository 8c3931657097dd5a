//! Which kernels support ublk: those with known faults are refused by name.

use std::fmt;

use archipelago_protocol::{Error, ErrorCode};

/// The alternatives to ublk.
pub const ALTERNATIVES: &str = "over NBD (`archipelago volume attach NAME --nbd`), or as a file through FUSE (`archipelago mount DIR`)";

/// Kernels that crash, with the known cause. Sources: the fix "ublk: fix NULL dereference" of Linux 6.18.6, and the bug trackers of storage
/// systems that were affected.
const FAULTY: [Fault; 2] = [
    Fault {
        versions: Versions::Stable {
            series: (6, 18),
            patches: (4, 5),
        },
        what: "Linux 6.18.4 and 6.18.5 crash when a ublk device is made; 6.18.6 does not",
    },
    Fault {
        versions: Versions::Build {
            series: (6, 17),
            builds: (1015, 1020),
            flavour: "azure",
        },
        what: "Ubuntu's 6.17.0-1015-azure to 6.17.0-1020-azure crash when a ublk device is made",
    },
];

struct Fault {
    versions: Versions,
    what: &'static str,
}

/// A range of kernels, both ends included.
enum Versions {
    /// A stable series, except a distribution's own builds of patch level 0.
    Stable {
        series: (u32, u32),
        patches: (u32, u32),
    },
    /// A distribution's builds.
    Build {
        series: (u32, u32),
        builds: (u32, u32),
        flavour: &'static str,
    },
}

/// A kernel's release as `uname -r` prints it: `6.17.0-1015-azure`, `6.12.117+deb12-cloud-amd64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    series: (u32, u32),
    patch: u32,
    /// The number behind the first dash, if there is one.
    build: Option<u32>,
    text: String,
}

impl Release {
    /// This kernel's release; `None` if its name has another form.
    #[must_use]
    pub fn own() -> Option<Release> {
        let names = nix::sys::utsname::uname().ok()?;
        Release::parse(names.release().to_str()?)
    }

    /// Parses a release.
    #[must_use]
    pub fn parse(text: &str) -> Option<Release> {
        let (version, rest) =
            match text.find(|letter: char| !letter.is_ascii_digit() && letter != '.') {
                Some(at) => text.split_at(at),
                None => (text, ""),
            };
        let mut numbers = version.split('.').map(str::parse::<u32>);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        let build = rest.strip_prefix('-').and_then(|rest| {
            let end = rest.find(|letter: char| !letter.is_ascii_digit());
            rest[..end.unwrap_or(rest.len())].parse().ok()
        });
        Some(Release {
            series: (major, minor),
            patch,
            build,
            text: text.to_owned(),
        })
    }

    /// Checks that ublk may be used on this kernel.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`], naming the fault, and the alternatives to ublk.
    pub fn check(&self) -> Result<(), Error> {
        let Some(fault) = FAULTY.iter().find(|fault| fault.versions.have(self)) else {
            return Ok(());
        };
        let message = format!(
            "this kernel ({self}) cannot have ublk devices: {}",
            fault.what
        );
        Err(
            Error::new(ErrorCode::Unsupported, message).with_hint(format!(
                "boot another kernel, or use the volume {ALTERNATIVES}"
            )),
        )
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl Versions {
    fn have(&self, release: &Release) -> bool {
        let within = |(first, last): (u32, u32), number| (first..=last).contains(&number);
        match *self {
            Versions::Stable { series, patches } => {
                release.series == series && within(patches, release.patch)
            }
            Versions::Build {
                series,
                builds,
                flavour,
            } => {
                release.series == series
                    && release.build.is_some_and(|build| within(builds, build))
                    && release.text.ends_with(flavour)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_with_known_faults_are_refused_by_name_and_their_neighbours_are_not() {
        for (text, refused) in [
            ("6.18.3", false),
            ("6.18.4", true),
            ("6.18.5", true),
            ("6.18.5-200.fc43.x86_64", true),
            ("6.18.4+deb14-amd64", true),
            ("6.18.6", false),
            ("6.18.44-fc-v595", false),
            ("6.1.4", false),
            ("6.12.117+deb12-cloud-amd64", false),
            ("6.17.0-1014-azure", false),
            ("6.17.0-1015-azure", true),
            ("6.17.0-1020-azure", true),
            ("6.17.0-1021-azure", false),
            ("6.17.0-1015-generic", false),
            ("7.0.0-rc1", false),
        ] {
            let release = Release::parse(text).unwrap();
            let checked = release.check();
            assert_eq!(checked.is_err(), refused, "{text}: {checked:?}");
            if let Err(error) = checked {
                assert!(error.message.contains(text), "{error}");
                assert!(error.hint.contains("--nbd") && error.hint.contains("mount"));
            }
        }
    }

    #[test]
    fn releases_are_read_and_nonsense_is_none() {
        let release = Release::parse("6.17.0-1015-azure").unwrap();
        assert_eq!((release.series, release.patch), ((6, 17), 0));
        assert_eq!(release.build, Some(1015));
        assert_eq!(Release::parse("6.9").unwrap().patch, 0);
        for nonsense in ["", "linux", "6", "x.6.1"] {
            assert_eq!(Release::parse(nonsense), None, "{nonsense}");
        }
        assert!(Release::own().is_some());
    }
}
