//! The server's replies in a handshake, as bytes that wait to be sent.

use crate::offer::{BLOCK_MAX, BLOCK_MIN, BLOCK_PREFERRED, Offer};
use crate::wire::{
    ALLOCATION, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option_reply,
};

use super::option_data::Wanted;

/// Zeros at the end of the reply to `EXPORT_NAME`, unless the client has asked for none.
const ZEROES: usize = 124;

/// Why a client does not get an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// There is none of this name.
    Unknown,
    /// Not now, or not for this client; the reason.
    Policy(&'a str),
    /// The server, or the storage behind it, is about to end or is away; the reason.
    Shutdown(&'a str),
}

/// The bytes to send: the greeting, replies to options, the reply to `EXPORT_NAME`.
#[derive(Debug)]
pub(super) struct Replies {
    output: Vec<u8>,
}

impl Replies {
    /// The greeting of a fixed newstyle server.
    pub(super) fn greeting() -> Self {
        let mut output = Vec::with_capacity(256);
        output.extend(MAGIC.to_be_bytes());
        output.extend(OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        output.extend(flags.to_be_bytes());
        Replies { output }
    }

    /// The bytes; the caller removes those that were sent.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The only reply to `EXPORT_NAME`.
    pub(super) fn begin(&mut self, size: u64, flags: u16, with_zeroes: bool) {
        self.output.extend(size.to_be_bytes());
        self.output.extend(flags.to_be_bytes());
        if with_zeroes {
            self.output.extend([0; ZEROES]);
        }
    }

    /// The names of all exports.
    ///
    /// # Panics
    /// If a name has 4 GiB: the caller's mistake.
    pub(super) fn exports<'n>(&mut self, option: u32, names: impl Iterator<Item = &'n str>) {
        for name in names {
            let len = u32::try_from(name.len()).expect("names are short");
            let parts = [&len.to_be_bytes(), name.as_bytes()];
            self.reply_parts(option, option_reply::SERVER, &parts);
        }
        self.reply(option, option_reply::ACK, &[]);
    }

    /// Describes the export.
    pub(super) fn describe(
        &mut self,
        option: u32,
        wanted: Wanted<'_>,
        offer: &Offer<'_>,
        flags: u16,
    ) {
        let size = offer.size.to_be_bytes();
        self.info_reply(option, info::EXPORT, &[&size, &flags.to_be_bytes()]);
        let sizes = [BLOCK_MIN, BLOCK_PREFERRED, BLOCK_MAX].map(u32::to_be_bytes);
        self.info_reply(option, info::BLOCK_SIZE, &[sizes.as_flattened()]);
        if wanted.contains(info::NAME) {
            self.info_reply(option, info::NAME, &[offer.name.as_bytes()]);
        }
        if wanted.contains(info::DESCRIPTION) {
            let kind = match offer.read_only {
                true => "read-only",
                false => "read-write",
            };
            let text = format!("{} of Archipelago, {kind}", offer.name);
            self.info_reply(option, info::DESCRIPTION, &[text.as_bytes()]);
        }
        self.reply(option, option_reply::ACK, &[]);
    }

    /// The one metadata context, by `id`, or none.
    pub(super) fn contexts(&mut self, option: u32, id: Option<u32>) {
        if let Some(id) = id {
            let parts: [&[u8]; 2] = [&id.to_be_bytes(), ALLOCATION.as_bytes()];
            self.reply_parts(option, option_reply::META_CONTEXT, &parts);
        }
        self.reply(option, option_reply::ACK, &[]);
    }

    /// Refuses the export.
    pub(super) fn refuse(&mut self, option: u32, why: Refusal<'_>) {
        let (kind, text) = match why {
            Refusal::Unknown => (option_reply::ERR_UNKNOWN, "there is no export of this name"),
            Refusal::Policy(text) => (option_reply::ERR_POLICY, text),
            Refusal::Shutdown(text) => (option_reply::ERR_SHUTDOWN, text),
        };
        self.reply(option, kind, text.as_bytes());
    }

    fn info_reply(&mut self, option: u32, kind: u16, parts: &[&[u8]]) {
        let data = [&kind.to_be_bytes()[..], &parts.concat()].concat();
        self.reply(option, option_reply::INFO, &data);
    }

    /// A reply of `kind` with `data`.
    pub(super) fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.reply_parts(option, kind, &[data]);
    }

    fn reply_parts(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        self.output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        self.output.extend(kind.to_be_bytes());
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(len).expect("replies are shorter than the longest name");
        self.output.extend(len.to_be_bytes());
        parts.iter().for_each(|part| self.output.extend(*part));
    }
}
