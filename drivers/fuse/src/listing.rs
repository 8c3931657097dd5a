//! A directory that is being read: one page of names at a time, so that its length costs no memory.

use archipelago_api::client::{Client, path_segment};
use archipelago_api::types::{VolumePage, VolumeView};
use archipelago_protocol::{Error, Name};
use fuser::{FileType, ReplyDirectory};

use crate::nodes::{ROOT, number};

/// Names of a page.
const PAGE_LEN: usize = 1000;

/// Offset of the first name.
const FIRST_NAME: u64 = 2;

/// A reader's position in the directory. Offsets count entries: 0 is `.`, 1 is `..`, then come the names in their order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    page: Vec<(Name, u64)>,
    /// Offset of the page's first name.
    begin: u64,
    /// The name behind which the next page begins; `None`: this is the last page.
    next: Option<Name>,
    /// If set, only this name is shown.
    only: Option<Name>,
}

impl Listing {
    /// The beginning of the directory; with `only`, of a directory with only that name.
    pub(crate) fn new(only: Option<Name>) -> Listing {
        Listing {
            only,
            ..Listing::default()
        }
    }

    /// Fills `reply` from `offset` on.
    ///
    /// # Errors
    /// The node's error.
    pub(crate) fn read(
        &mut self,
        client: &Client,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), Error> {
        let mut offset = offset;
        loop {
            let (number, kind, name) = match offset {
                0 => (ROOT, FileType::Directory, "."),
                1 => (ROOT, FileType::Directory, ".."),
                _ => match self.at(client, offset)? {
                    Some((name, number)) => (*number, FileType::RegularFile, name.as_str()),
                    None => return Ok(()),
                },
            };
            offset += 1;
            let next = i64::try_from(offset).unwrap_or(i64::MAX);
            if reply.add(number, next, kind, name) {
                return Ok(());
            }
        }
    }

    /// The name at `offset`, if the directory has that many.
    fn at(&mut self, client: &Client, offset: u64) -> Result<Option<&(Name, u64)>, Error> {
        // A reader that begins again, or goes back, reads from the first page on.
        if offset == FIRST_NAME || offset < self.begin {
            self.turn(client, None, FIRST_NAME)?;
        }
        loop {
            let index = usize::try_from(offset - self.begin).unwrap_or(usize::MAX);
            if index < self.page.len() {
                return Ok(self.page.get(index));
            }
            let Some(after) = self.next.take() else {
                return Ok(None);
            };
            let begin = self.begin + self.page.len() as u64;
            self.turn(client, Some(after), begin)?;
        }
    }

    fn turn(&mut self, client: &Client, after: Option<Name>, begin: u64) -> Result<(), Error> {
        let mut path = format!("/v1/volumes?limit={PAGE_LEN}");
        if let Some(after) = after {
            path.push_str(&format!("&after={}", path_segment(after.as_str())));
        }
        let page: VolumePage = client.get(&path)?;
        let is_shown = |name: &Name| self.only.as_ref().is_none_or(|only| only == name);
        let shown = |view: &VolumeView| is_shown(&view.entry.name);
        let names = page.volumes.into_iter().filter(shown);
        let names = names.map(|view| (view.entry.name, number(view.entry.lineage)));
        (self.page, self.next, self.begin) = (names.collect(), page.next, begin);
        Ok(())
    }
}
