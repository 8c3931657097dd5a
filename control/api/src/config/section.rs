//! A table of the configuration file whose keys are taken out one by one; what is left over is unknown.

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

    /// The refusal of `value` for `key`.
    pub(super) fn refuse(&self, key: &str, value: &str, legal: &str) -> Error {
        Error::new(
            ErrorCode::Invalid,
            format!("{} = {value} is not legal: {legal}", self.key(key)),
        )
    }

    /// The refusal of a table without `key`.
    pub(super) fn missing(&self, key: &str, legal: &str) -> Error {
        Error::new(
            ErrorCode::Invalid,
            format!("{} is missing: {legal}", self.key(key)),
        )
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(key, &other.to_string(), "a string")),
        }
    }

    pub(super) fn switch(&mut self, key: &str) -> Result<Option<bool>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Boolean(on)) => Ok(Some(on)),
            Some(other) => Err(self.refuse(key, &other.to_string(), "true or false")),
        }
    }

    pub(super) fn integer(
        &mut self,
        key: &str,
        legal: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Error> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let number = value
            .as_integer()
            .and_then(|number| u32::try_from(number).ok());
        match number {
            Some(number) if legal.contains(&number) => Ok(Some(number)),
            _ => Err(self.refuse(key, &value.to_string(), &format!("a number in {legal:?}"))),
        }
    }

    /// A user or a group.
    pub(super) fn account(&mut self, key: &str) -> Result<Option<Account>, Error> {
        let legal = "a name, or a number other than 0";
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(name)) if !name.is_empty() => Ok(Some(Account::Name(name))),
            Some(value) => match value.as_integer().map(u32::try_from) {
                // The last number is what system calls take for "no change".
                Some(Ok(id)) if id != 0 && id != u32::MAX => Ok(Some(Account::Id(id))),
                _ => Err(self.refuse(key, &value.to_string(), legal)),
            },
        }
    }

    pub(super) fn section(&mut self, key: &str) -> Result<Option<Section>, Error> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Section::new(self.key(key), table))),
            Some(other) => Err(self.refuse(key, &other.to_string(), "a table")),
        }
    }

    /// All entries as tables.
    pub(super) fn into_sections(mut self) -> Result<Vec<(String, Section)>, Error> {
        let keys: Vec<String> = self.table.keys().cloned().collect();
        let mut sections = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(section) = self.section(&key)? {
                sections.push((key, section));
            }
        }
        Ok(sections)
    }

    /// Refuses what nobody has taken.
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
