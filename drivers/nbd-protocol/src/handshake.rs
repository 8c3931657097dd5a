//! The handshake: a state machine of bytes in and bytes out, without sockets and waits.
//!
//! | state | takes | becomes |
//! |---|---|---|
//! | Flags | the client's flags | Option |
//! | Option | the header of an option | Data, or Skip if it is too long |
//! | Data | the option's data | Option; Asked, if the server has to look for an export; Over, by `ABORT` |
//! | Asked | the server's answer | Option; Over, by `GO` and `EXPORT_NAME` |
//! | Skip | data that nobody looks at | Option |
//!
//! Invariants
//! - [`Handshake::wants`] never asks for a byte of the transmission, or of TLS, which may follow at once.
//! - The memory that a client can occupy is bounded: [`DATA_MAX`] bytes of an option, and a reply to each of [`OPTIONS_MAX`] options.
//! - Where encryption is required, the server reveals no export before it, and no option from before it has an effect behind it: the
//!   specification's mode FORCEDTLS.

mod one_export;
mod option_data;
mod progress;
mod replies;

use crate::offer::{NAME_MAX, OPTIONS_MAX, Offer};
use crate::request::Terms;
use crate::wire::{
    ALLOCATION, ALLOCATION_ID, Fields, OPTION_MAGIC, handshake_flag, option, option_reply,
};
use option_data::{Queries, Wanted, parse_contexts, parse_info};
use progress::SKIP_MAX;
pub use progress::{Broken, Progress};
pub use replies::Refusal;
use replies::Replies;

/// Longest data of an option that is looked at: the longest name, and more information requests than there are.
pub const DATA_MAX: usize = NAME_MAX + 512;
/// Bytes of an option's header: magic, number, length.
const OPTION_HEADER_LEN: usize = 16;
/// Bytes skipped at a time.
const SKIP_AT_ONCE: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
enum State {
    Flags,
    Option,
    Data {
        option: u32,
        len: usize,
    },
    /// The data, where the name is: at most [`DATA_MAX`] bytes.
    Asked {
        option: u32,
        data: Vec<u8>,
    },
    Skip {
        option: u32,
        left: u32,
    },
    Over,
}

/// Whether a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    /// It is not supported.
    None,
    /// It is required, and has not begun.
    Required,
    /// It has begun.
    Begun,
}

/// The handshake with one client.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    encryption: Encryption,
    no_zeroes: bool,
    structured: bool,
    /// The export for which the client has selected `base:allocation`.
    block_status: Option<String>,
    options: u32,
    replies: Replies,
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
        Handshake {
            state: State::Flags,
            encryption: Encryption::None,
            no_zeroes: false,
            structured: false,
            block_status: None,
            options: 0,
            replies: Replies::greeting(),
        }
    }

    /// Begins with the greeting of a server that requires TLS: the specification's mode FORCEDTLS.
    #[must_use]
    pub fn with_tls() -> Self {
        Handshake {
            encryption: Encryption::Required,
            ..Handshake::new()
        }
    }

    /// How many bytes [`Handshake::take`] takes next; 0: none any more, or none before the server has answered.
    #[must_use]
    pub fn wants(&self) -> usize {
        match self.state {
            State::Flags => 4,
            State::Option => OPTION_HEADER_LEN,
            State::Data { len, .. } => len,
            State::Skip { left, .. } => SKIP_AT_ONCE.min(left as usize),
            State::Asked { .. } | State::Over => 0,
        }
    }

    /// The bytes to send; the caller removes those that were sent.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.replies.output()
    }

    /// Takes the bytes that [`Handshake::wants`] has asked for.
    ///
    /// # Errors
    /// [`Broken`]: the connection ends.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Progress, Broken> {
        debug_assert_eq!(bytes.len(), self.wants());
        match self.state {
            State::Flags => self.flags(bytes)?,
            State::Option => return self.header(bytes),
            State::Data { option, .. } => return self.option(option, bytes),
            State::Skip { option, left } => {
                let taken = u32::try_from(bytes.len()).unwrap_or(left);
                let left = left.saturating_sub(taken);
                self.state = State::Skip { option, left };
                if left == 0 {
                    self.state = State::Option;
                    self.replies.reply(
                        option,
                        option_reply::ERR_TOO_BIG,
                        b"the option is too long",
                    );
                }
            }
            State::Asked { .. } | State::Over => {}
        }
        Ok(Progress::Continues)
    }

    /// The name of the requested export; empty: the default export.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let State::Asked { option, data } = &self.state else {
            return &[];
        };
        let name = match *option {
            option::EXPORT_NAME => Some(data.as_slice()),
            option::INFO | option::GO => parse_info(data).map(|(name, _)| name),
            _ => parse_contexts(data).map(|(name, _)| name),
        };
        name.unwrap_or_default()
    }

    /// The answer to [`Progress::Names`]: the names of the exports, or a refusal.
    ///
    /// # Panics
    /// If a name has 4 GiB: the caller's mistake.
    pub fn list<'n>(&mut self, names: Result<impl Iterator<Item = &'n str>, Refusal<'_>>) {
        let State::Asked { option, .. } = std::mem::replace(&mut self.state, State::Option) else {
            return;
        };
        match names {
            Ok(names) => self.replies.exports(option, names),
            Err(why) => self.replies.refuse(option, why),
        }
    }

    /// The answer to [`Progress::Described`] and [`Progress::Chosen`]: the export, or a refusal.
    ///
    /// # Errors
    /// [`Broken`]: the connection ends.
    pub fn answer(&mut self, found: Result<&Offer<'_>, Refusal<'_>>) -> Result<Progress, Broken> {
        let state = std::mem::replace(&mut self.state, State::Option);
        let State::Asked { option, data } = state else {
            self.state = state;
            return Ok(Progress::Continues);
        };
        let offer = match found {
            Ok(offer) => offer,
            Err(_) if option == option::EXPORT_NAME => return Err(Broken::NoSuchExport),
            Err(why) => {
                self.replies.refuse(option, why);
                return Ok(Progress::Continues);
            }
        };
        match option {
            option::EXPORT_NAME => Ok(self.begin_by_name(offer)),
            option::INFO | option::GO => {
                let wanted = parse_info(&data).map_or(Wanted(&[]), |(_, wanted)| wanted);
                let flags = offer.flags(self.structured);
                self.replies.describe(option, wanted, offer, flags);
                Ok(match option {
                    option::GO => self.agree(offer),
                    _ => Progress::Continues,
                })
            }
            _ => {
                if let Some((_, queries)) = parse_contexts(&data) {
                    self.contexts(option, queries, offer);
                }
                Ok(Progress::Continues)
            }
        }
    }

    /// TLS has begun: from now on the client's bytes are decrypted ones.
    pub fn encrypted(&mut self) {
        self.encryption = Encryption::Begun;
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

    fn header(&mut self, bytes: &[u8]) -> Result<Progress, Broken> {
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
            0 => return self.option(option, &[]),
            len if len <= DATA_MAX => State::Data { option, len },
            _ if len <= SKIP_MAX && option != option::EXPORT_NAME => {
                State::Skip { option, left: len }
            }
            _ => return Err(Broken::TooLong(len)),
        };
        Ok(Progress::Continues)
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<Progress, Broken> {
        self.state = State::Option;
        if self.encryption == Encryption::Required {
            match option {
                option::STARTTLS | option::ABORT => {}
                option::EXPORT_NAME => return Err(Broken::NotEncrypted),
                _ => {
                    let why = b"this server serves nothing without TLS";
                    self.replies.reply(option, option_reply::ERR_TLS_REQD, why);
                    return Ok(Progress::Continues);
                }
            }
        }
        match option {
            option::EXPORT_NAME => return Ok(self.ask(option, data, Progress::Chosen)),
            option::ABORT => {
                self.replies.reply(option, option_reply::ACK, &[]);
                self.state = State::Over;
                return Ok(Progress::Aborted);
            }
            option::LIST if data.is_empty() => return Ok(self.ask(option, data, Progress::Names)),
            option::INFO | option::GO => return Ok(self.info(option, data)),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.replies.reply(option, option_reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                return Ok(self.context_option(option, data));
            }
            option::STARTTLS if self.encryption == Encryption::Required && data.is_empty() => {
                self.replies.reply(option, option_reply::ACK, &[]);
                return Ok(Progress::StartTls);
            }
            option::STARTTLS if self.encryption == Encryption::Begun => {
                let why = b"the connection is encrypted already";
                self.replies.reply(option, option_reply::ERR_INVALID, why);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                let why = b"the option has no data";
                self.replies.reply(option, option_reply::ERR_INVALID, why);
            }
            option::STARTTLS if self.encryption == Encryption::Required => {
                let why = b"the option has no data";
                self.replies.reply(option, option_reply::ERR_INVALID, why);
            }
            _ => self.replies.reply(option, option_reply::ERR_UNSUP, &[]),
        }
        Ok(Progress::Continues)
    }

    /// Has the server look for an export.
    fn ask(&mut self, option: u32, data: &[u8], question: Progress) -> Progress {
        let data = data.to_vec();
        self.state = State::Asked { option, data };
        question
    }

    /// Ends the handshake, with this export.
    fn agree(&mut self, offer: &Offer<'_>) -> Progress {
        self.state = State::Over;
        Progress::Agreed(Terms {
            size: offer.size,
            read_only: offer.read_only,
            structured: self.structured,
            // A selection for another export has no effect.
            block_status: self.block_status.as_deref() == Some(offer.name),
        })
    }

    fn begin_by_name(&mut self, offer: &Offer<'_>) -> Progress {
        let flags = offer.flags(self.structured);
        self.replies.begin(offer.size, flags, !self.no_zeroes);
        self.agree(offer)
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Progress {
        if parse_info(data).is_none() {
            let why = b"the data of the option is not a name and a list of information requests";
            self.replies.reply(option, option_reply::ERR_INVALID, why);
            return Progress::Continues;
        }
        let question = match option {
            option::GO => Progress::Chosen,
            _ => Progress::Described,
        };
        self.ask(option, data, question)
    }

    fn context_option(&mut self, option: u32, data: &[u8]) -> Progress {
        if option == option::SET_META_CONTEXT {
            // Each selection replaces the previous one, also if it fails.
            self.block_status = None;
            if !self.structured {
                let why = b"metadata contexts come with structured replies";
                self.replies.reply(option, option_reply::ERR_INVALID, why);
                return Progress::Continues;
            }
        }
        if parse_contexts(data).is_none() {
            let why = b"the data of the option is not a name and a list of queries";
            self.replies.reply(option, option_reply::ERR_INVALID, why);
            return Progress::Continues;
        }
        self.ask(option, data, Progress::Described)
    }

    /// Lists or selects metadata contexts: there is one.
    fn contexts(&mut self, option: u32, queries: Queries<'_>, offer: &Offer<'_>) {
        let selects = option == option::SET_META_CONTEXT;
        // A list without queries lists all contexts; a selection without queries selects none.
        let found = match (selects, queries.count()) {
            (false, 0) => true,
            (true, _) => queries.any(|query| query == ALLOCATION.as_bytes()),
            (false, _) => queries.any(|query| query == ALLOCATION.as_bytes() || query == b"base:"),
        };
        let id = match selects {
            true => ALLOCATION_ID,
            // Reserved in a list.
            false => 0,
        };
        if found && selects {
            self.block_status = Some(offer.name.to_owned());
        }
        self.replies.contexts(option, found.then_some(id));
    }
}

#[cfg(test)]
mod tests;
