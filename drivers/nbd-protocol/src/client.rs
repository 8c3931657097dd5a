//! The client's side of the handshake, as far as it is needed to pass a connection to the kernel's client: the default export, with simple
//! replies and without TLS.

use crate::wire::{Fields, MAGIC, OPTION_MAGIC, handshake_flag, option};

/// Bytes of a server's greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of the answer to [`choose_default`]: a size and flags, without the zeros that follow them in old handshakes.
pub const CHOSEN_LEN: usize = 10;

/// The export that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Bytes.
    pub size: u64,
    /// Transmission flags: [`export_flag`](crate::wire::export_flag).
    pub flags: u16,
}

/// The client's reply to a server's `greeting`, which starts the transmission of the default export; `None` if the server does not support
/// fixed newstyle.
#[must_use]
pub fn choose_default(greeting: &[u8; GREETING_LEN]) -> Option<Vec<u8>> {
    let mut fields = Fields(greeting);
    let is_newstyle = fields.u64() == Some(MAGIC) && fields.u64() == Some(OPTION_MAGIC);
    let needed = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    if !is_newstyle || fields.u16()? & needed != needed {
        return None;
    }
    let mut bytes = u32::from(needed).to_be_bytes().to_vec();
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(option::EXPORT_NAME.to_be_bytes());
    // The length of the name.
    bytes.extend(0_u32.to_be_bytes());
    Some(bytes)
}

/// The server's description of the chosen export.
#[must_use]
pub fn chosen(bytes: &[u8; CHOSEN_LEN]) -> Option<Chosen> {
    let mut fields = Fields(bytes);
    Some(Chosen {
        size: fields.u64()?,
        flags: fields.u16()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::{Handshake, Progress};
    use crate::offer::Offer;

    #[test]
    fn our_server_agrees_with_it() {
        let offer = Offer {
            name: "disk",
            size: 1 << 30,
            read_only: true,
        };
        let mut server = Handshake::new();
        let greeting: Vec<u8> = server.output().drain(..).collect();
        let mut sent = &choose_default(greeting[..].try_into().unwrap()).unwrap()[..];
        let mut progress = Progress::Continues;
        while server.wants() > 0 {
            let (next, rest) = sent.split_at(server.wants());
            progress = server.take_with(next, &offer).unwrap();
            sent = rest;
        }
        assert!(sent.is_empty(), "it says more than the server takes");
        assert!(matches!(progress, Progress::Agreed(terms) if !terms.structured));
        let answer: Vec<u8> = server.output().drain(..).collect();
        let found = chosen(answer[..].try_into().unwrap());
        let expected = Chosen {
            size: offer.size,
            flags: offer.flags(false),
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn another_server_gets_no_answer() {
        let greeting: Vec<u8> = Handshake::new().output().drain(..).collect();
        // The magic, that of newstyle, and both flags.
        for (at, bits) in [(0, 1), (15, 1), (17, 1), (17, 2)] {
            let mut other = greeting.clone();
            other[at] ^= bits;
            assert_eq!(choose_default(other[..].try_into().unwrap()), None, "{at}");
        }
    }
}
