//! The number of attached volumes for which a process has file descriptors.
//!
//! A process without descriptors can neither accept a front end nor open a file of the pool. So an attach is refused if the descriptors
//! that the volume may need in use are not left.

use archipelago_protocol::{Error, ErrorCode};
use nix::sys::resource::{Resource, getrlimit};

/// Descriptors for everything except attached volumes and files of the pool: rings and segments (30), control connections (some 20), calls
/// of the threads that may block (64), bulk copies.
const RESERVE: u64 = 128;
/// For an attached volume: its socket, and two eventfds of its own plus three copies.
const ATTACHED: u64 = 6;
/// For its front end: three copies of the connection, the back channel, the in-flight region.
const CONNECTED: u64 = 5;
/// For the guest's memory: two slots, as for guests of more than 3 GiB. Further slots use the reserve.
const MEMORY: u64 = 2;
/// For the open volume: its presence journal.
const OPEN: u64 = 1;
/// For each queue: kick and call.
const QUEUE: u64 = 2;

/// Descriptors of one volume with `queues` queues, in use.
fn taken_by(queues: u16) -> u64 {
    ATTACHED + CONNECTED + MEMORY + OPEN + QUEUE * u64::from(queues)
}

/// The descriptors of a process that serves volumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    allowed: u64,
    /// For the backend, if this process has one.
    backend: u64,
}

impl Budget {
    /// The budget of this process, whose backend needs `backend(limit)` of the allowed descriptors.
    pub(crate) fn own(backend: impl FnOnce(u64) -> u64) -> Budget {
        let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Budget {
            allowed,
            backend: backend(allowed),
        }
    }

    /// Whether one more volume with `queues` queues fits beside those whose queue counts are `attached`.
    ///
    /// # Errors
    /// [`ErrorCode::NoSpace`] with all the numbers.
    pub(crate) fn admit(
        self,
        attached: impl Iterator<Item = u16>,
        queues: u16,
    ) -> Result<(), Error> {
        let (count, taken) = attached.fold((0_u64, 0), |(count, taken), queues| {
            (count + 1, taken + taken_by(queues))
        });
        let aside = RESERVE + self.backend;
        let wanted = taken_by(queues);
        if aside + taken + wanted <= self.allowed {
            return Ok(());
        }
        let message = format!(
            "the process may have {} file descriptors: {count} attached volumes take {taken} in use, {aside} are set aside for the \
             node and the pool, and a volume with {queues} {} takes {wanted}",
            self.allowed,
            if queues == 1 { "queue" } else { "queues" },
        );
        Err(Error::new(ErrorCode::NoSpace, message).with_hint(
            "detach a volume, or raise the hard limit of open files (`LimitNOFILE=` of the service, `ulimit -n` of the shell) and \
             start the node again",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(allowed: u64, queues: u16) -> usize {
        // As many as a pool of files keeps open.
        let backend = (allowed / 8).clamp(16, 4096);
        let budget = Budget { allowed, backend };
        let mut attached = Vec::new();
        while budget.admit(attached.iter().copied(), queues).is_ok() {
            attached.push(queues);
        }
        attached.len()
    }

    #[test]
    fn as_many_volumes_are_admitted_as_the_limit_carries_in_use() {
        for (allowed, queues, volumes) in [
            (64, 1, 0),
            (512, 1, 20),
            (1024, 1, 48),
            (4096, 1, 216),
            (4096, 16, 75),
        ] {
            assert_eq!(fits(allowed, queues), volumes, "{allowed} {queues}");
        }
    }

    #[test]
    fn a_refusal_has_all_numbers_and_a_way_out() {
        let refused = Budget {
            allowed: 512,
            backend: 64,
        }
        .admit([1; 20].into_iter(), 2)
        .unwrap_err();
        assert_eq!(refused.code, ErrorCode::NoSpace);
        for part in [
            "512",
            "20 attached",
            "320 in use",
            "192 are",
            "2 queues takes 18",
        ] {
            assert!(refused.message.contains(part), "{refused}: {part}");
        }
        assert!(refused.hint.contains("LimitNOFILE"));
    }
}
