//! Checksums as people give them: `sha256:` and 64 hexadecimal digits.

use archipelago_protocol::{Error, ErrorCode};

/// A SHA-256 checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub(crate) [u8; 32]);

impl Checksum {
    /// The digits of `digest`.
    pub(crate) fn hex(digest: &[u8]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::str::FromStr for Checksum {
    type Err = Error;

    fn from_str(text: &str) -> Result<Checksum, Error> {
        let refused = || {
            let message =
                format!("`{text}` is not a checksum: `sha256:` and 64 hexadecimal digits");
            Error::new(ErrorCode::Invalid, message)
        };
        let digits = text.strip_prefix("sha256:").ok_or_else(refused)?;
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let pair = &digits[2 * index..2 * index + 2];
            *byte = u8::from_str_radix(pair, 16).map_err(|_not_digits| refused())?;
        }
        Ok(Checksum(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_its_kind_and_its_digits() {
        let digits = "0123456789abcdef".repeat(4);
        let checksum: Checksum = format!("sha256:{digits}").parse().unwrap();
        assert_eq!(Checksum::hex(&checksum.0), digits);
        let upper: Checksum = format!("sha256:{}", digits.to_uppercase()).parse().unwrap();
        assert_eq!(upper, checksum);
        for bad in [
            digits.clone(),
            format!("sha512:{digits}"),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:{}g", &digits[1..]),
            format!("sha256:{}ää", &digits[4..]),
        ] {
            assert_eq!(
                bad.parse::<Checksum>().unwrap_err().code,
                ErrorCode::Invalid
            );
        }
    }
}
