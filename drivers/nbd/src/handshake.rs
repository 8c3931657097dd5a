//! The handshake: a state machine of bytes in and bytes out, which knows no socket.
//!
//! | state | takes | becomes |
//! |---|---|---|
//! | Flags | the client's flags | Option |
//! | Option | the header of an option | Data, or Skip if it is too long |
//! | Data | the option's data | Option; Over, by `GO`, `EXPORT_NAME` and `ABORT` |
//! | Skip | data that nobody looks at | Option |
//!
//! Invariants
//! - [`Handshake::wants`] never asks for a byte of the transmission, which may follow at once.
//! - What a client can make the server keep is bounded: [`DATA_MAX`] bytes of an option, and a reply to each of
//!   [`OPTIONS_MAX`] options.

use crate::config::{BLOCK_MAX, BLOCK_MIN, BLOCK_PREFERRED, NAME_MAX, OPTIONS_MAX};
use crate::request::Terms;
use crate::wire::{
    ALLOCATION, ALLOCATION_ID, Fields, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag,
    info, option, option_reply,
};

/// Longest data of an option that is looked at: the longest name, and more information requests than there are.
pub const DATA_MAX: usize = NAME_MAX + 512;
/// Longest data of an option that is skipped; a longer one breaks the connection.
const SKIP_MAX: u32 = 1 << 20;
/// Bytes of an option's header: magic, number, length.
const OPTION_HEADER_LEN: usize = 16;
/// Zeros at the end of the reply to `EXPORT_NAME`, unless the client does without.
const ZEROES: usize = 124;
/// Bytes skipped at a time.
const SKIP_AT_ONCE: usize = 1024;

/// Why a handshake is broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Flags that nobody knows.
    #[error("{0:#x} are not flags of a client")]
    Flags(u32),
    /// No option begins there.
    #[error("{0:#x} is not the magic of an option")]
    Magic(u64),
    /// Its data would have to be read.
    #[error("an option with {0} bytes of data is longer than {SKIP_MAX}")]
    TooLong(u32),
    /// The client goes on and on.
    #[error("the client has sent more than {OPTIONS_MAX} options")]
    TooMany,
    /// `EXPORT_NAME` has no way to say so.
    #[error("there is no export of the name that the client asks for")]
    NoSuchExport,
}

/// The export that is offered.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Transmission flags, without and with structured replies.
    pub flags: [u16; 2],
}

/// How far the handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are to come.
    Continues,
    /// The transmission begins behind the bytes that are to be sent.
    Agreed(Terms),
    /// The client has aborted: the connection ends behind the bytes that are to be sent.
    Aborted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flags,
    Option,
    Data { option: u32, len: usize },
    Skip { option: u32, left: u32 },
    Over,
}

/// The handshake with one client.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    no_zeroes: bool,
    structured: bool,
    /// `base:allocation` is wanted.
    block_status: bool,
    options: u32,
    /// To be sent.
    output: Vec<u8>,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake::new()
    }
}

impl Handshake {
    /// Begins with the greeting of the server.
    #[must_use]
    pub fn new() -> Self {
        let mut output = Vec::with_capacity(256);
        output.extend(MAGIC.to_be_bytes());
        output.extend(OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        output.extend(flags.to_be_bytes());
        Handshake {
            state: State::Flags,
            no_zeroes: false,
            structured: false,
            block_status: false,
            options: 0,
            output,
        }
    }

    /// How many bytes [`Handshake::take`] takes next; 0: none any more.
    #[must_use]
    pub fn wants(&self) -> usize {
        match self.state {
            State::Flags => 4,
            State::Option => OPTION_HEADER_LEN,
            State::Data { len, .. } => len,
            State::Skip { left, .. } => SKIP_AT_ONCE.min(left as usize),
            State::Over => 0,
        }
    }

    /// What is to be sent; the caller takes out what was sent.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Takes as many bytes as [`Handshake::wants`] has asked for.
    ///
    /// # Errors
    /// [`Broken`]: the connection ends.
    pub fn take(&mut self, bytes: &[u8], offer: &Offer<'_>) -> Result<Progress, Broken> {
        debug_assert_eq!(bytes.len(), self.wants());
        match self.state {
            State::Flags => self.flags(bytes)?,
            State::Option => return self.header(bytes, offer),
            State::Data { option, .. } => return self.option(option, bytes, offer),
            State::Skip { option, left } => {
                let taken = u32::try_from(bytes.len()).unwrap_or(left);
                let left = left.saturating_sub(taken);
                self.state = State::Skip { option, left };
                if left == 0 {
                    self.state = State::Option;
                    self.reply(option, option_reply::ERR_TOO_BIG, b"the option is too long");
                }
            }
            State::Over => {}
        }
        Ok(Progress::Continues)
    }

    fn flags(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let flags = Fields(bytes).u32().unwrap_or(u32::MAX);
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Err(Broken::Flags(flags));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = State::Option;
        Ok(())
    }

    fn header(&mut self, bytes: &[u8], offer: &Offer<'_>) -> Result<Progress, Broken> {
        let mut fields = Fields(bytes);
        let magic = fields.u64().unwrap_or(0);
        if magic != OPTION_MAGIC {
            return Err(Broken::Magic(magic));
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(Broken::TooMany);
        }
        let option = fields.u32().unwrap_or(0);
        let len = fields.u32().unwrap_or(0);
        self.state = match usize::try_from(len).unwrap_or(usize::MAX) {
            0 => return self.option(option, &[], offer),
            len if len <= DATA_MAX => State::Data { option, len },
            _ if len <= SKIP_MAX && option != option::EXPORT_NAME => {
                State::Skip { option, left: len }
            }
            _ => return Err(Broken::TooLong(len)),
        };
        Ok(Progress::Continues)
    }

    fn option(&mut self, option: u32, data: &[u8], offer: &Offer<'_>) -> Result<Progress, Broken> {
        self.state = State::Option;
        match option {
            option::EXPORT_NAME => return self.export_name(data, offer),
            option::ABORT => {
                self.reply(option, option_reply::ACK, &[]);
                self.state = State::Over;
                return Ok(Progress::Aborted);
            }
            option::LIST if data.is_empty() => {
                let len = u32::try_from(offer.name.len()).expect("at most NAME_MAX");
                let mut server = len.to_be_bytes().to_vec();
                server.extend(offer.name.as_bytes());
                self.reply(option, option_reply::SERVER, &server);
                self.reply(option, option_reply::ACK, &[]);
            }
            option::INFO | option::GO => return Ok(self.info(option, data, offer)),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, option_reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(option, data, offer);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                let why = b"the option has no data";
                self.reply(option, option_reply::ERR_INVALID, why);
            }
            _ => self.reply(option, option_reply::ERR_UNSUP, &[]),
        }
        Ok(Progress::Continues)
    }

    /// Ends the handshake: the export is this one from now on.
    fn agree(&mut self, offer: &Offer<'_>) -> Progress {
        self.state = State::Over;
        Progress::Agreed(Terms {
            size: offer.size,
            read_only: offer.read_only,
            structured: self.structured,
            block_status: self.block_status,
        })
    }

    fn export_name(&mut self, name: &[u8], offer: &Offer<'_>) -> Result<Progress, Broken> {
        if !offer.is_called(name) {
            return Err(Broken::NoSuchExport);
        }
        self.output.extend(offer.size.to_be_bytes());
        let flags = offer.flags[usize::from(self.structured)];
        self.output.extend(flags.to_be_bytes());
        if !self.no_zeroes {
            self.output.extend([0; ZEROES]);
        }
        Ok(self.agree(offer))
    }

    fn info(&mut self, option: u32, data: &[u8], offer: &Offer<'_>) -> Progress {
        let Some((name, wanted)) = parse_info(data) else {
            let why = b"the data of the option is not a name and a list of information requests";
            self.reply(option, option_reply::ERR_INVALID, why);
            return Progress::Continues;
        };
        if !offer.is_called(name) {
            let why = b"there is no export of this name";
            self.reply(option, option_reply::ERR_UNKNOWN, why);
            return Progress::Continues;
        }
        let flags = offer.flags[usize::from(self.structured)];
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
        match option {
            option::GO => self.agree(offer),
            _ => Progress::Continues,
        }
    }

    /// Lists or selects metadata contexts: there is one.
    fn contexts(&mut self, option: u32, data: &[u8], offer: &Offer<'_>) {
        let selects = option == option::SET_META_CONTEXT;
        if selects {
            // Each selection replaces the one before, also one that fails.
            self.block_status = false;
            if !self.structured {
                let why = b"metadata contexts come with structured replies";
                return self.reply(option, option_reply::ERR_INVALID, why);
            }
        }
        let Some((name, queries)) = parse_contexts(data) else {
            let why = b"the data of the option is not a name and a list of queries";
            return self.reply(option, option_reply::ERR_INVALID, why);
        };
        if !offer.is_called(name) {
            let why = b"there is no export of this name";
            return self.reply(option, option_reply::ERR_UNKNOWN, why);
        }
        // A list without queries is that of all contexts, a selection without them selects none.
        let found = match (selects, queries.count) {
            (false, 0) => true,
            (true, _) => queries.any(|query| query == ALLOCATION.as_bytes()),
            (false, _) => queries.any(|query| query == ALLOCATION.as_bytes() || query == b"base:"),
        };
        if found {
            self.block_status |= selects;
            let id = match selects {
                true => ALLOCATION_ID,
                // Reserved in a list.
                false => 0,
            };
            let context = [&id.to_be_bytes(), ALLOCATION.as_bytes()].concat();
            self.reply(option, option_reply::META_CONTEXT, &context);
        }
        self.reply(option, option_reply::ACK, &[]);
    }

    fn info_reply(&mut self, option: u32, kind: u16, parts: &[&[u8]]) {
        let mut data = kind.to_be_bytes().to_vec();
        parts.iter().for_each(|part| data.extend(*part));
        self.reply(option, option_reply::INFO, &data);
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        self.output.extend(kind.to_be_bytes());
        let len = u32::try_from(data.len()).expect("replies are shorter than the longest name");
        self.output.extend(len.to_be_bytes());
        self.output.extend(data);
    }
}

impl Offer<'_> {
    /// Whether `name` is the export: its own name, or none at all, which is the default export.
    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// The information requests of a client.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a>(&'a [u8]);

impl Wanted<'_> {
    fn contains(self, kind: u16) -> bool {
        let mut kinds = self.0.chunks_exact(2);
        kinds.any(|bytes| bytes == kind.to_be_bytes())
    }
}

/// The name and the information requests in the data of `INFO` and `GO`.
fn parse_info(data: &[u8]) -> Option<(&[u8], Wanted<'_>)> {
    let mut fields = Fields(data);
    let len = usize::try_from(fields.u32()?).ok()?;
    let name = fields.bytes(len)?;
    let count = usize::from(fields.u16()?);
    let wanted = fields.bytes(count * 2)?;
    (fields.0.is_empty() && len <= NAME_MAX).then_some((name, Wanted(wanted)))
}

/// Queries for metadata contexts.
#[derive(Debug, Clone, Copy)]
struct Queries<'a> {
    count: u32,
    fields: Fields<'a>,
}

impl Queries<'_> {
    fn any(mut self, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let next = || {
            let len = usize::try_from(self.fields.u32()?).ok()?;
            self.fields.bytes(len)
        };
        std::iter::from_fn(next).any(is_it)
    }
}

/// The name and the queries in the data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
fn parse_contexts(data: &[u8]) -> Option<(&[u8], Queries<'_>)> {
    let mut fields = Fields(data);
    let len = usize::try_from(fields.u32()?).ok()?;
    let name = fields.bytes(len)?;
    let count = fields.u32()?;
    let queries = Queries { count, fields };
    for _ in 0..count {
        let len = usize::try_from(fields.u32()?).ok()?;
        fields.bytes(len)?;
    }
    fields.0.is_empty().then_some((name, queries))
}

#[cfg(test)]
mod tests;
