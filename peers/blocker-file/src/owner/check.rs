//! Whether a pool whose record names an owner may be taken over. Pure functions.
//!
//! The caller has the pool's lock, and has checked that it excludes others of this host. What follows for the recorded owner:
//!
//! | the owner ran | then |
//! |---|---|
//! | anywhere, and the file system is of one host | its process has ended: it would have the lock |
//! | under this kernel, on this very file system | the same |
//! | under this kernel, on another mount, as a process that does not exist any more | what it had in flight has ended, once its heartbeat was silent for a while |
//! | on this machine, before a reboot | it has ended; a heartbeat distinguishes two machines with one id |
//! | anywhere else | unknown: it may still write. A person must decide |

use archipelago_blocker::Claim;

use super::name::{Name, Place};

/// Which processes can have a file of the pool open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Processes under this kernel: the holder of the pool's lock is the only one.
    ThisHost,
    /// Other hosts too, or other mounts of this one, which the lock may not exclude.
    OtherHosts,
}

/// Whether two numbers are known and equal.
fn is_same<N: PartialEq + Default>(one: N, other: N) -> bool {
    one == other && one != N::default()
}

/// What may be done about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nobody owns the pool any more.
    Take,
    /// The same, if no heartbeat is seen.
    TakeIfSilent,
    /// Somebody may own it.
    Refuse,
    /// Somebody else does, and this node served it until then.
    Lost,
}

/// Whether a process at `own` may take over the pool whose record is `found`; `is_gone` returns whether a process id of the caller's
/// namespace is unused.
pub(crate) fn check(
    found: Name,
    own: Place,
    reach: Reach,
    claim: Claim,
    is_gone: impl FnOnce(u32) -> bool,
) -> Verdict {
    if reach == Reach::ThisHost {
        return Verdict::Take;
    }
    let elsewhere = match claim {
        Claim::Start => Verdict::Refuse,
        Claim::TakeOver => Verdict::TakeIfSilent,
        Claim::Restart => Verdict::Lost,
    };
    let Some(place) = found.place else {
        // The predecessor of a process that is started again has not released anything.
        return match claim {
            Claim::Start | Claim::TakeOver => Verdict::Take,
            Claim::Restart => Verdict::Lost,
        };
    };
    if is_same(place.boot, own.boot) {
        if is_same(place.device, own.device) {
            return Verdict::Take;
        }
        let is_visible = place.namespace == own.namespace && own.namespace != 0;
        return match is_visible && is_gone(place.process) {
            true => Verdict::TakeIfSilent,
            // Another node of this host, perhaps; the predecessor of a process that is started again, perhaps.
            false if claim == Claim::TakeOver => Verdict::TakeIfSilent,
            false => Verdict::Refuse,
        };
    }
    match is_same(place.machine, own.machine) && claim != Claim::Restart {
        true => Verdict::TakeIfSilent,
        false => elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Place = Place {
        machine: 1,
        boot: 2,
        device: 3,
        namespace: 4,
        process: 5,
    };

    /// The verdicts for a start, a takeover and a restart.
    fn verdicts(place: Option<Place>, reach: Reach, gone: bool) -> [Verdict; 3] {
        let found = Name {
            incarnation: 7,
            place,
        };
        [Claim::Start, Claim::TakeOver, Claim::Restart]
            .map(|claim| check(found, OWN, reach, claim, |_pid| gone))
    }

    #[test]
    fn only_what_the_lock_or_the_kernel_knows_is_taken_without_a_person() {
        use Verdict::{Lost, Refuse, Take, TakeIfSilent};
        let there = Some(Place { process: 6, ..OWN });
        let with = |change: fn(&mut Place)| {
            let mut place = Place { process: 6, ..OWN };
            change(&mut place);
            Some(place)
        };
        for (what, place, gone, expected) in [
            ("free", None, false, [Take, Take, Lost]),
            ("this file system", there, false, [Take; 3]),
            (
                "another mount, alive",
                with(|place| place.device = 9),
                false,
                [Refuse, TakeIfSilent, Refuse],
            ),
            (
                "another mount, gone",
                with(|place| place.device = 9),
                true,
                [TakeIfSilent; 3],
            ),
            (
                "a mount without a number",
                with(|place| place.device = 0),
                false,
                [Refuse, TakeIfSilent, Refuse],
            ),
            (
                "another container, whose processes are not seen",
                with(|place| (place.device, place.namespace) = (9, 9)),
                true,
                [Refuse, TakeIfSilent, Refuse],
            ),
            (
                "before a restart of the machine",
                with(|place| place.boot = 9),
                true,
                [TakeIfSilent, TakeIfSilent, Lost],
            ),
            (
                "another machine",
                with(|place| (place.machine, place.boot) = (9, 9)),
                true,
                [Refuse, TakeIfSilent, Lost],
            ),
            (
                "an unknown machine",
                with(|place| (place.machine, place.boot) = (0, 0)),
                true,
                [Refuse, TakeIfSilent, Lost],
            ),
        ] {
            assert_eq!(verdicts(place, Reach::OtherHosts, gone), expected, "{what}");
            assert_eq!(verdicts(place, Reach::ThisHost, gone), [Take; 3], "{what}");
        }
        // What is not known of this host is like nothing.
        let nowhere = Place {
            machine: 0,
            boot: 0,
            device: 0,
            namespace: 0,
            process: 5,
        };
        let found = Name {
            incarnation: 7,
            place: Some(nowhere),
        };
        let verdict = check(found, nowhere, Reach::OtherHosts, Claim::Start, |_| true);
        assert_eq!(verdict, Refuse);
    }
}
