//! Who writes the heads: a number for this host, so that a head says where its last writer ran.
//!
//! It is told to people, never compared for a decision: generations decide who may write.

use std::path::Path;

/// The same over reboots. See machine-id(5): it is not stored as it is.
const MACHINE_ID: &str = "/etc/machine-id";
/// Where there is none: another one at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Parameters of FNV-1a with 128 bits: draft-eastlake-fnv, section 5.
const FNV_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
/// Makes the number ours: another program's hash of the same id differs.
const SALT: &str = "archipelago owner 1:";

/// The number of this host; 0 if it has no identity.
pub(crate) fn owner() -> u128 {
    first_of(&[Path::new(MACHINE_ID), Path::new(BOOT_ID)])
}

fn first_of(sources: &[&Path]) -> u128 {
    sources
        .iter()
        .filter_map(|source| std::fs::read_to_string(source).ok())
        .find_map(|text| number(text.trim()))
        .unwrap_or(0)
}

/// Nothing for what stands in a machine-id before the first boot: empty, or `uninitialized`.
fn number(id: &str) -> Option<u128> {
    let digits = id.bytes().filter(u8::is_ascii_hexdigit).count();
    (digits == 32).then(|| {
        SALT.bytes().chain(id.bytes()).fold(FNV_BASIS, |sum, byte| {
            (sum ^ u128::from(byte)).wrapping_mul(FNV_PRIME)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_its_first_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (machine, boot) = (dir.path().join("machine"), dir.path().join("boot"));
        assert_eq!(first_of(&[&machine, &boot]), 0);
        std::fs::write(&boot, "a0b1c2d3-e4f5-4a6b-8c7d-0123456789ab\n").unwrap();
        let of_boot = first_of(&[&machine, &boot]);
        assert_ne!(of_boot, 0);
        std::fs::write(&machine, "uninitialized\n").unwrap();
        assert_eq!(first_of(&[&machine, &boot]), of_boot);
        std::fs::write(&machine, "0123456789abcdef0123456789abcdef\n").unwrap();
        let of_machine = first_of(&[&machine, &boot]);
        assert_ne!(of_machine, of_boot);
        assert_ne!(of_machine, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    }
}
