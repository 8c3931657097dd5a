//! Replies to a client: which reply, with which data, and which cells become free.

use archipelago_protocol::status::{STATUS_PAGE_MAX, StatusPage};

use archipelago_nbd_protocol::pieces::Range;

use crate::cells::{CellList, Cells};
use crate::layout::cell_at;
use crate::memory::Memory;
use crate::sender::{Data, Sender};
use archipelago_nbd_protocol::reply::{Done, EXTENT_LEN, ReplyHeader, errno, extent};
use archipelago_nbd_protocol::request::{Header, Terms};
use archipelago_nbd_protocol::wire::Errno;

/// The replies of a connection: the data of a cell is either sent, or the cell is freed.
pub(crate) struct Replies<'a> {
    pub(crate) terms: &'a Terms,
    pub(crate) memory: &'a Memory,
    pub(crate) cells: &'a mut Cells,
    pub(crate) sender: &'a mut Sender,
}

impl Replies<'_> {
    /// Sends the reply to an invalid request.
    pub(crate) fn refuse(&mut self, header: &Header, errno: Errno) {
        let reply = ReplyHeader::refused(header, self.terms, errno);
        self.sender.push(self.memory, &reply, None);
    }

    /// Sends the reply to a request that needs no operation.
    pub(crate) fn noop(&mut self, header: &Header) {
        let reply = ReplyHeader::noop(header, self.terms);
        self.sender.push(self.memory, &reply, None);
    }

    /// Sends the one reply to a request: the data in `cells` follows if it has succeeded.
    pub(crate) fn whole(&mut self, cookie: u64, mut cells: CellList, result: Result<(), Errno>) {
        let mut header = Some(ReplyHeader::simple(cookie, result));
        while let Some(cell) = self.cells.pop(&mut cells) {
            if result.is_err() {
                self.cells.put(cell);
                continue;
            }
            let data = Data {
                cell,
                len: self.cells.range(cell).len,
            };
            match header.take() {
                Some(header) => self.sender.push(self.memory, &header, Some(data)),
                None => self.sender.push_data(data),
            }
        }
        if let Some(header) = header {
            self.sender.push(self.memory, &header, None);
        }
    }

    /// Sends a chunk of a read: the data in `cell`, or its error.
    pub(crate) fn chunk(&mut self, cookie: u64, done: Done, cell: u16, result: Result<(), Errno>) {
        let Range { offset, len } = self.cells.range(cell);
        match result {
            Ok(()) => {
                let header = ReplyHeader::data(cookie, done, offset, len);
                let data = Some(Data { cell, len });
                self.sender.push(self.memory, &header, data);
            }
            Err(errno) => {
                self.cells.put(cell);
                let header = ReplyHeader::error_at(cookie, done, errno, offset);
                self.sender.push(self.memory, &header, None);
            }
        }
    }

    /// Converts the page in `cell` into extents, in place, and sends them.
    pub(crate) fn extents(&mut self, cookie: u64, one: bool, cell: u16, result: Result<(), Errno>) {
        let Range { len, .. } = self.cells.range(cell);
        let mut page = [0; STATUS_PAGE_MAX as usize];
        let at = cell_at(cell);
        let decoded = result.and_then(|()| {
            self.memory.read(at, &mut page);
            StatusPage::decode(&page, u64::from(len)).map_err(errno)
        });
        let page = match decoded {
            Ok(page) => page,
            Err(errno) => {
                self.cells.put(cell);
                let header = ReplyHeader::error(cookie, errno);
                return self.sender.push(self.memory, &header, None);
            }
        };
        let mut count = 0;
        for run in page.runs().take(if one { 1 } else { usize::MAX }) {
            let len = u32::try_from(run.len).expect("no more than was asked for");
            let bytes = extent(len, run.state);
            self.memory.write(at + count as usize * bytes.len(), &bytes);
            count += 1;
        }
        let header = ReplyHeader::extents(cookie, count);
        let len = EXTENT_LEN * count;
        self.sender
            .push(self.memory, &header, Some(Data { cell, len }));
    }
}
