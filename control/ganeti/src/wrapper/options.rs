//! A list of options as QEMU writes it: `NAME,key=value,key=value`, a comma in a value doubled. Bytes, not text: paths may be anything.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One value, with its key; the first value of a list may have no key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    key: Option<Vec<u8>>,
    value: Vec<u8>,
}

/// A list of options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct OptionList {
    items: Vec<Item>,
}

impl OptionList {
    /// Parses `argument`.
    pub(super) fn parse(argument: &OsStr) -> OptionList {
        let mut items = Vec::new();
        let mut item = Vec::new();
        let mut bytes = argument.as_bytes().iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if byte != b',' {
                item.push(byte);
            } else if bytes.next_if_eq(&b',').is_some() {
                item.push(b',');
            } else {
                items.push(Item::parse(std::mem::take(&mut item)));
            }
        }
        items.push(Item::parse(item));
        OptionList { items }
    }

    /// A list that begins with `name`.
    pub(super) fn new(name: &[u8]) -> OptionList {
        let first = Item {
            key: None,
            value: name.to_vec(),
        };
        OptionList { items: vec![first] }
    }

    /// The list with one more option.
    pub(super) fn with(mut self, key: &str, value: &[u8]) -> OptionList {
        self.items.push(Item {
            key: Some(key.as_bytes().to_vec()),
            value: value.to_vec(),
        });
        self
    }

    /// The list without the options `keys`.
    pub(super) fn without(mut self, keys: &[&str]) -> OptionList {
        let is_one = |key: &Vec<u8>| keys.iter().any(|one| one.as_bytes() == key.as_slice());
        self.items
            .retain(|item| !item.key.as_ref().is_some_and(is_one));
        self
    }

    /// The list with `name` as its first, keyless value.
    pub(super) fn renamed(mut self, name: &[u8]) -> OptionList {
        if let Some(first) = self.items.first_mut().filter(|first| first.key.is_none()) {
            first.value = name.to_vec();
        }
        self
    }

    /// The first value, if it has no key.
    pub(super) fn name(&self) -> Option<&[u8]> {
        let first = self.items.first().filter(|first| first.key.is_none())?;
        Some(&first.value)
    }

    /// The value of `key`; of several the last, as QEMU takes it.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let is_one = |item: &&Item| item.key.as_deref() == Some(key.as_bytes());
        let item = self.items.iter().rev().find(is_one)?;
        Some(&item.value)
    }

    /// Whether `key` has the value `value`.
    pub(super) fn has(&self, key: &str, value: &str) -> bool {
        self.get(key) == Some(value.as_bytes())
    }

    /// The list as an argument.
    pub(super) fn render(&self) -> OsString {
        let mut bytes = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                bytes.push(b',');
            }
            if let Some(key) = &item.key {
                bytes.extend_from_slice(key);
                bytes.push(b'=');
            }
            for byte in &item.value {
                bytes.push(*byte);
                if *byte == b',' {
                    bytes.push(b',');
                }
            }
        }
        OsString::from_vec(bytes)
    }
}

impl Item {
    fn parse(mut bytes: Vec<u8>) -> Item {
        let Some(equals) = bytes.iter().position(|byte| *byte == b'=') else {
            return Item {
                key: None,
                value: bytes,
            };
        };
        let value = bytes.split_off(equals + 1);
        bytes.pop();
        Item {
            key: Some(bytes),
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_doubled_comma_is_part_of_a_value() {
        let list = OptionList::parse(OsStr::new("raw,file=/a,,b=c,id=x,,"));
        assert_eq!(list.name(), Some(b"raw".as_slice()));
        assert_eq!(list.get("file"), Some(b"/a,b=c".as_slice()));
        assert_eq!(list.get("id"), Some(b"x,".as_slice()));
        assert_eq!(list.get("raw"), None);
        assert_eq!(list.render(), OsStr::new("raw,file=/a,,b=c,id=x,,"));
    }

    #[test]
    fn the_last_of_several_counts() {
        let list = OptionList::parse(OsStr::new("id=a,id=b"));
        assert_eq!((list.name(), list.get("id")), (None, Some(b"b".as_slice())));
        assert_eq!(list.without(&["id"]).render(), OsStr::new(""));
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            name in prop::collection::vec(any::<u8>().prop_filter("no key", |byte| *byte != b'='), 1..8),
            values in prop::collection::vec(("[a-z.-]{1,8}", prop::collection::vec(any::<u8>(), 0..16)), 0..6),
        ) {
            let mut list = OptionList::new(&name);
            for (key, value) in &values {
                list = list.with(key, value);
            }
            prop_assert_eq!(OptionList::parse(&list.render()), list);
        }
    }
}
