//! A table of the configuration file. Parsing removes each known key; a remaining key is unknown and refused.

use std::ops::RangeInclusive;

use archipelago_protocol::{Error, ErrorCode};
use toml::{Table, Value};

use super::account::Account;

/// A table and its name, for messages.
#[derive(Debug)]
pub(super) struct Section {
    name: String,
    table: Table,
}

impl Section {
    pub(super) fn new(name: String, table: Table) -> Section {
        Section { name, table }
    }

    fn key(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// The error for an invalid `value` of `key`; `expected` describes the valid ones.
    pub(super) fn invalid_value(&self, key: &str, value: &str, expected: &str) -> Error {
        Error::new(
            ErrorCode::Invalid,
            format!("{} = {value} is not legal: {expected}", self.key(key)),
        )
    }

    /// The error for a table without `key`.
    pub(super) fn missing(&self, key: &str, expected: &str) -> Error {
        Error::new(
            ErrorCode::Invalid,
            format!("{} is missing: {expected}", self.key(key)),
        )
    }

    pub(super) fn string(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.invalid_value(key, &other.to_string(), "a string")),
        }
    }

    pub(super) fn boolean(&mut self, key: &str) -> Result<Option<bool>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Boolean(on)) => Ok(Some(on)),
            Some(other) => Err(self.invalid_value(key, &other.to_string(), "true or false")),
        }
    }

    pub(super) fn integer(
        &mut self,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Error> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let number = value
            .as_integer()
            .and_then(|number| u32::try_from(number).ok());
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.invalid_value(
                key,
                &value.to_string(),
                &format!("a number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// Reads a list of numbers.
    pub(super) fn integers(
        &mut self,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<Vec<u32>>, Error> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let number = |value: &Value| {
            let number = u32::try_from(value.as_integer()?).ok()?;
            range.contains(&number).then_some(number)
        };
        let list = value.as_array();
        let numbers = list.and_then(|list| list.iter().map(number).collect());
        numbers.map(Some).ok_or_else(|| {
            let expected = format!(
                "a list of numbers from {} to {}",
                range.start(),
                range.end()
            );
            self.invalid_value(key, &value.to_string(), &expected)
        })
    }

    /// Reads a user or a group: a name, or an id other than 0 and `u32::MAX`.
    pub(super) fn account(&mut self, key: &str) -> Result<Option<Account>, Error> {
        let expected = "a name, or a number from 1 to 4294967294";
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(name)) if !name.is_empty() => Ok(Some(Account::Name(name))),
            Some(value) => match value.as_integer().map(u32::try_from) {
                // `u32::MAX` is `(uid_t) -1`, which means "leave unchanged" for setresuid(2).
                Some(Ok(id)) if id != 0 && id != u32::MAX => Ok(Some(Account::Id(id))),
                _ => Err(self.invalid_value(key, &value.to_string(), expected)),
            },
        }
    }

    pub(super) fn subsection(&mut self, key: &str) -> Result<Option<Section>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Section::new(self.key(key), table))),
            Some(other) => Err(self.invalid_value(key, &other.to_string(), "a table")),
        }
    }

    /// Reads every entry as a table; refuses other values.
    pub(super) fn into_sections(mut self) -> Result<Vec<(String, Section)>, Error> {
        let keys: Vec<String> = self.table.keys().cloned().collect();
        let mut sections = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(section) = self.subsection(&key)? {
                sections.push((key, section));
            }
        }
        Ok(sections)
    }

    /// Refuses the first key that was not read. `known`: all valid keys, for the message. Call it after all keys have been read.
    pub(super) fn finish(self, known: &[&str]) -> Result<(), Error> {
        match self.table.iter().next() {
            None => Ok(()),
            Some((key, value)) => Err(Error::new(
                ErrorCode::Invalid,
                format!(
                    "unknown key {} = {value}; legal keys: {}",
                    self.key(key),
                    known.join(", ")
                ),
            )),
        }
    }
}
