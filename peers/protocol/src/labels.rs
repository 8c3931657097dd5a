//! Labels: notes of users and programs about a volume, a snapshot or an image, such as whose disk it is. The storage never reads them.
//!
//! | text | limits |
//! |---|---|
//! | key | 1 to 63 of `a-z 0-9 . _ -`, beginning with a letter or a digit; a program that sets labels begins its keys with its name and a dot: `ganeti.instance` |
//! | value | up to 255 bytes of UTF-8 without control characters; may be empty |
//! | all labels of a volume, snapshot or image | [`LABELS_MAX`], of [`LABELS_LEN_MAX`] bytes in all |
//!
//! In JSON the labels are one object, from keys to values. In a change, null instead of a value removes the label.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};

/// Longest key, in bytes.
pub const LABEL_KEY_LEN_MAX: usize = 63;
/// Longest value, in bytes.
pub const LABEL_VALUE_LEN_MAX: usize = 255;
/// Most labels of one volume, snapshot or image.
pub const LABELS_MAX: usize = 32;
/// Most bytes of keys and values together: with two bytes of lengths for each label they fit into a record of the catalogue, and leave 950
/// bytes of it to other attributes.
pub const LABELS_LEN_MAX: usize = 3072;

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::Invalid, message)
}

/// The key of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelKey(String);

impl LabelKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LabelKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let is_letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let legal = |byte: u8| is_letter(&byte) || b"._-".contains(&byte);
        let why = if text.is_empty() || text.len() > LABEL_KEY_LEN_MAX {
            "it takes 1 to 63 characters"
        } else if !text.bytes().all(legal) {
            "legal characters are a-z 0-9 . _ -"
        } else if !text.as_bytes().first().is_some_and(is_letter) {
            "it must begin with a letter or a digit"
        } else {
            return Ok(LabelKey(text));
        };
        Err(invalid(format!(
            "{text:?} cannot be the key of a label: {why}"
        )))
    }
}

impl FromStr for LabelKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        LabelKey::try_from(text.to_owned())
    }
}

impl From<LabelKey> for String {
    fn from(key: LabelKey) -> String {
        key.0
    }
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for LabelKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The value of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelValue(String);

impl LabelValue {
    /// The value as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LabelValue {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let why = if text.len() > LABEL_VALUE_LEN_MAX {
            "it takes up to 255 bytes"
        } else if text.chars().any(char::is_control) {
            "control characters are not legal"
        } else {
            return Ok(LabelValue(text));
        };
        Err(invalid(format!(
            "{text:?} cannot be the value of a label: {why}"
        )))
    }
}

impl FromStr for LabelValue {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        LabelValue::try_from(text.to_owned())
    }
}

impl From<LabelValue> for String {
    fn from(value: LabelValue) -> String {
        value.0
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A label, as text `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The key.
    pub key: LabelKey,
    /// The value.
    pub value: LabelValue,
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(invalid(format!("{text:?} is not a label: KEY=VALUE")));
        };
        Ok(Label {
            key: key.parse()?,
            value: value.parse()?,
        })
    }
}

/// The labels of one volume, snapshot or image: within the limits, in order of their keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<LabelKey, LabelValue>",
    into = "BTreeMap<LabelKey, LabelValue>"
)]
pub struct Labels(BTreeMap<LabelKey, LabelValue>);

impl Labels {
    /// The labels of `list`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if a key is given twice, or they are too many or too long.
    pub fn from_list(list: Vec<Label>) -> Result<Self, Error> {
        let mut changes = LabelChanges::default();
        for label in list {
            changes.set(label)?;
        }
        let mut labels = Labels::default();
        labels.apply(&changes)?;
        Ok(labels)
    }

    /// Makes `changes`, all or none.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if they are too many or too long afterwards; then the labels are unchanged.
    pub fn apply(&mut self, changes: &LabelChanges) -> Result<(), Error> {
        let mut labels = self.0.clone();
        for (key, value) in &changes.0 {
            match value {
                Some(value) => labels.insert(key.clone(), value.clone()),
                None => labels.remove(key.as_str()),
            };
        }
        *self = Labels::try_from(labels)?;
        Ok(())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&LabelValue> {
        self.0.get(key)
    }

    /// All labels, in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&LabelKey, &LabelValue)> {
        self.0.iter()
    }
}

impl TryFrom<BTreeMap<LabelKey, LabelValue>> for Labels {
    type Error = Error;

    fn try_from(labels: BTreeMap<LabelKey, LabelValue>) -> Result<Self, Error> {
        if labels.len() > LABELS_MAX {
            let count = labels.len();
            return Err(invalid(format!(
                "{count} labels are more than the {LABELS_MAX} that one thing may have"
            )));
        }
        let len_of = |(key, value): (&LabelKey, &LabelValue)| key.0.len() + value.0.len();
        let len: usize = labels.iter().map(len_of).sum();
        if len > LABELS_LEN_MAX {
            return Err(invalid(format!(
                "the labels of one thing may have {LABELS_LEN_MAX} bytes together, not {len}"
            )));
        }
        Ok(Labels(labels))
    }
}

impl From<Labels> for BTreeMap<LabelKey, LabelValue> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

/// The labels for users: `KEY=VALUE`, with commas between them.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// A change of labels: keys with their new values, or with none to remove the label. Other labels stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelChanges(BTreeMap<LabelKey, Option<LabelValue>>);

impl LabelChanges {
    /// Adds a change that sets `label`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if there is a change of this key.
    pub fn set(&mut self, label: Label) -> Result<(), Error> {
        self.insert(label.key, Some(label.value))
    }

    /// Adds a change that removes the label of `key`, if there is one.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if there is a change of this key.
    pub fn unset(&mut self, key: LabelKey) -> Result<(), Error> {
        self.insert(key, None)
    }

    fn insert(&mut self, key: LabelKey, value: Option<LabelValue>) -> Result<(), Error> {
        if self.0.contains_key(&key) {
            return Err(invalid(format!("the label `{key}` is given twice")));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A filter for labels, as text `KEY` or `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelFilter {
    key: LabelKey,
    /// `None`: any value.
    value: Option<LabelValue>,
}

impl LabelFilter {
    /// Whether `labels` match.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let found = labels.0.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

impl FromStr for LabelFilter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.parse()?)),
            None => (text, None),
        };
        Ok(LabelFilter {
            key: key.parse()?,
            value,
        })
    }
}

impl TryFrom<String> for LabelFilter {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl fmt::Display for LabelFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => write!(f, "{}", self.key),
        }
    }
}

impl From<LabelFilter> for String {
    fn from(filter: LabelFilter) -> String {
        filter.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    fn labels(list: &[&str]) -> Result<Labels, Error> {
        Labels::from_list(list.iter().map(|text| label(text)).collect())
    }

    #[test]
    fn keys_and_values_are_limited_in_length_and_characters() {
        let key = "k".repeat(LABEL_KEY_LEN_MAX);
        let value = "ü".repeat(127);
        for valid in ["a=", "0=1", "ganeti.instance=web 1, ünder=x", "a_b-c.d=="] {
            let (key, value) = valid.split_once('=').unwrap();
            let label = label(valid);
            assert_eq!((label.key.as_str(), label.value.as_str()), (key, value));
        }
        assert!(format!("{key}={value}!").parse::<Label>().is_ok());
        for (bad, why) in [
            (String::new(), "KEY=VALUE"),
            ("a".to_owned(), "KEY=VALUE"),
            ("=a".to_owned(), "1 to 63"),
            (format!("{key}k=a"), "1 to 63"),
            ("A=a".to_owned(), "a-z 0-9"),
            ("a b=a".to_owned(), "a-z 0-9"),
            ("ä=a".to_owned(), "a-z 0-9"),
            ("a/b=a".to_owned(), "a-z 0-9"),
            ("-a=a".to_owned(), "begin"),
            (".a=a".to_owned(), "begin"),
            (format!("a={value}ü"), "255 bytes"),
            ("a=b\n".to_owned(), "control"),
            ("a=\u{1b}[1m".to_owned(), "control"),
            ("a=\u{85}".to_owned(), "control"),
            ("a=\u{7f}".to_owned(), "control"),
        ] {
            let error = bad.parse::<Label>().unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid);
            assert!(error.message.contains(why), "{bad:?}: {}", error.message);
            assert!(!error.message.chars().any(char::is_control), "{error}");
        }
    }

    #[test]
    fn a_change_is_made_whole_or_not_at_all() {
        let mut all = labels(&["a=1", "b=2", "c=3"]).unwrap();
        let mut changes = LabelChanges::default();
        changes.set(label("b=")).unwrap();
        changes.unset("c".parse().unwrap()).unwrap();
        changes.unset("never".parse().unwrap()).unwrap();
        changes.set(label("d=4")).unwrap();
        assert!(changes.set(label("d=5")).is_err() && changes.unset("d".parse().unwrap()).is_err());
        all.apply(&changes).unwrap();
        assert_eq!(all.to_string(), "a=1,b=,d=4");
        let before = all.clone();
        let mut too_many = LabelChanges::default();
        for number in 0..LABELS_MAX - 2 {
            too_many.set(label(&format!("n{number}=x"))).unwrap();
        }
        let error = all.apply(&too_many).unwrap_err();
        assert!(error.message.contains("33 labels"), "{error}");
        assert_eq!(all, before);
        // One goes, and the others fit.
        too_many.unset("a".parse().unwrap()).unwrap();
        all.apply(&too_many).unwrap();
        assert_eq!(all.iter().count(), LABELS_MAX);
    }

    #[test]
    fn all_labels_of_a_thing_are_bounded_in_their_bytes() {
        // Keys of 2 bytes, values of 254: twelve are 3072 bytes.
        let of = |count: usize, last: &str| {
            let long = |number| format!("{}{}={}", 'k', char::from(b'a' + number), "v".repeat(254));
            let mut list: Vec<Label> = (0..12)
                .take(count)
                .map(|number| label(&long(number)))
                .collect();
            list.extend((!last.is_empty()).then(|| label(last)));
            Labels::from_list(list)
        };
        assert!(of(12, "").is_ok());
        let error = of(12, "z=").unwrap_err();
        assert!(error.message.contains("3072 bytes"), "{error}");
        assert!(error.message.contains("3073"), "{error}");
        assert!(of(11, "z=").is_ok());
    }

    #[test]
    fn json_is_an_object_and_its_bounds_are_the_same() {
        let all = labels(&["ganeti.instance=web", "a=\"\\"]).unwrap();
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(text, r#"{"a":"\"\\","ganeti.instance":"web"}"#);
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap(), all);
        let changes: LabelChanges = serde_json::from_str(r#"{"a":null,"b":"x"}"#).unwrap();
        let mut changed = all;
        changed.apply(&changes).unwrap();
        assert_eq!(changed.to_string(), "b=x,ganeti.instance=web");
        for bad in [
            r#"{"A":"x"}"#,
            r#"{"a":"\u0007"}"#,
            r#"{"a":5}"#,
            r#"["a"]"#,
            r#""a=b""#,
        ] {
            assert!(serde_json::from_str::<Labels>(bad).is_err(), "{bad}");
            assert!(serde_json::from_str::<LabelChanges>(bad).is_err(), "{bad}");
        }
        let many: BTreeMap<String, &str> = (0..33).map(|n| (format!("k{n}"), "")).collect();
        let many = serde_json::to_string(&many).unwrap();
        assert!(serde_json::from_str::<Labels>(&many).is_err());
    }

    #[test]
    fn a_filter_is_a_key_or_a_key_and_its_value() {
        let all = labels(&["a=1", "b=x=y"]).unwrap();
        for (filter, expected) in [
            ("a", true),
            ("a=1", true),
            ("a=", false),
            ("a=11", false),
            ("b=x=y", true),
            ("b=x", false),
            ("c", false),
            ("c=", false),
        ] {
            let parsed: LabelFilter = filter.parse().unwrap();
            assert_eq!(parsed.matches(&all), expected, "{filter}");
            assert_eq!(parsed.to_string(), filter);
        }
        for bad in ["", "=", "=x", "A", "a=\n"] {
            assert!(bad.parse::<LabelFilter>().is_err(), "{bad:?}");
        }
    }
}
