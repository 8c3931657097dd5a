//! The handles that the client of a channel has open.
//!
//! Invariants
//! - A handle stands for one object until it is closed; the client chose its number, below [`HANDLES_MAX`].
//! - Rights and the client's token were checked when the handle was opened.
//!
//! [`HANDLES_MAX`]: archipelago_protocol::handle::HANDLES_MAX

use archipelago_protocol::ErrorCode;
use archipelago_protocol::handle::{HandleAccess, OpenObject};
use archipelago_protocol::object::ObjectOp;

/// The handles of one channel, by number. 96 bytes each: 3 MiB for a client that opens all.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    open: Vec<Option<OpenObject>>,
}

impl Handles {
    /// Opens `object` as `handle`, which is in range. A repetition changes nothing.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`]: the number stands for another object.
    pub(crate) fn open(&mut self, handle: u32, object: OpenObject) -> Result<(), ErrorCode> {
        let index = handle as usize;
        if self.open.len() <= index {
            self.open.resize(index + 1, None);
        }
        match self.open[index] {
            Some(other) if other != object => Err(ErrorCode::InUse),
            _ => {
                self.open[index] = Some(object);
                Ok(())
            }
        }
    }

    /// Closes `handle`, if it is open.
    pub(crate) fn close(&mut self, handle: u32) {
        if let Some(open) = self.open.get_mut(handle as usize) {
            *open = None;
        }
    }

    /// The object of `handle`, for `op`.
    ///
    /// # Errors
    /// [`ErrorCode::NotOpen`], or [`ErrorCode::Denied`] if it was opened with fewer rights.
    pub(crate) fn get(&self, handle: u32, op: ObjectOp) -> Result<&OpenObject, ErrorCode> {
        let open = self.open.get(handle as usize);
        let object = open.and_then(Option::as_ref).ok_or(ErrorCode::NotOpen)?;
        if HandleAccess::of(op) > object.access {
            return Err(ErrorCode::Denied);
        }
        Ok(object)
    }

    /// Closes every handle for whose object `keep` returns `false`.
    pub(crate) fn retain(&mut self, keep: impl Fn(&OpenObject) -> bool) {
        for open in &mut self.open {
            *open = open.filter(&keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::object::ObjectId;
    use archipelago_protocol::{Epoch, Lineage, ObjectSize};

    use super::*;

    #[test]
    fn a_number_stands_for_one_object_until_it_is_closed() {
        let object = |lineage, access| OpenObject {
            id: ObjectId::data(Lineage(lineage), Epoch(1)),
            object_size: ObjectSize::DEFAULT,
            access,
            token: Default::default(),
        };
        let (one, two) = (
            object(1, HandleAccess::Write),
            object(2, HandleAccess::Read),
        );
        let mut handles = Handles::default();
        assert_eq!(handles.get(3, ObjectOp::Read), Err(ErrorCode::NotOpen));
        assert_eq!(handles.open(3, one), Ok(()));
        assert_eq!(handles.open(3, one), Ok(()), "again");
        assert_eq!(handles.open(3, two), Err(ErrorCode::InUse));
        assert_eq!(handles.get(3, ObjectOp::Write), Ok(&one));
        assert_eq!(handles.get(3, ObjectOp::Sync), Ok(&one));
        assert_eq!(handles.get(3, ObjectOp::Delete), Err(ErrorCode::Denied));
        handles.close(3);
        handles.close(9);
        assert_eq!(handles.get(3, ObjectOp::Write), Err(ErrorCode::NotOpen));
        assert_eq!(handles.open(3, two), Ok(()));
        assert_eq!(handles.get(3, ObjectOp::Read), Ok(&two));
        assert_eq!(handles.get(3, ObjectOp::Sync), Err(ErrorCode::Denied));
        handles.retain(|object| object.id.lineage == Lineage(1));
        assert_eq!(handles.get(3, ObjectOp::Read), Err(ErrorCode::NotOpen));
    }
}
