//! The data of options, as clients send it.

use crate::offer::NAME_MAX;
use crate::wire::Fields;

/// The information requests of a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a>(pub(super) &'a [u8]);

impl Wanted<'_> {
    /// Whether `kind` is among them.
    pub(super) fn contains(self, kind: u16) -> bool {
        let mut kinds = self.0.chunks_exact(2);
        kinds.any(|bytes| bytes == kind.to_be_bytes())
    }
}

/// The name and the information requests in the data of `INFO` and `GO`.
pub(super) fn parse_info(data: &[u8]) -> Option<(&[u8], Wanted<'_>)> {
    let mut fields = Fields(data);
    let len = usize::try_from(fields.u32()?).ok()?;
    let name = fields.bytes(len)?;
    let count = usize::from(fields.u16()?);
    let wanted = fields.bytes(count * 2)?;
    (fields.0.is_empty() && len <= NAME_MAX).then_some((name, Wanted(wanted)))
}

/// Queries for metadata contexts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries<'a> {
    count: u32,
    fields: Fields<'a>,
}

impl Queries<'_> {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Whether `is_it` for one of them.
    pub(super) fn any(mut self, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let next = || {
            let len = usize::try_from(self.fields.u32()?).ok()?;
            self.fields.bytes(len)
        };
        std::iter::from_fn(next).any(is_it)
    }
}

/// The name and the queries in the data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub(super) fn parse_contexts(data: &[u8]) -> Option<(&[u8], Queries<'_>)> {
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
