//! Several steps that change one object, carried out all or not at all.
//!
//! Steps are carried out in their order. If one fails, the operation ends, and nothing was changed. librados empties an operation when it
//! is started, so it is consumed then: a retry makes a new one.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use xseg::Span;

use crate::bindings;

/// A condition on an attribute. The given text is on the left: [`Comparison::AtLeast`] is met if it is not below the attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes. A missing attribute counts as an empty text.
    Equal,
    /// Not below the attribute, in the order of bytes. A missing attribute is below all others.
    AtLeast,
}

/// The operators as arguments of the call: all are below 8.
const EQUAL: u8 = bindings::LIBRADOS_CMPXATTR_OP_EQ.to_le_bytes()[0];
const AT_LEAST: u8 = bindings::LIBRADOS_CMPXATTR_OP_GTE.to_le_bytes()[0];

/// Expectations about an object that is going to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// Expected length of the object.
    pub object_len: u64,
    /// Expected length of a write.
    pub write_len: u64,
}

/// Memory that an operation keeps until its end.
#[derive(Debug)]
enum Written {
    Bytes {
        #[expect(dead_code, reason = "kept, not read: librados reads it")]
        bytes: Vec<u8>,
    },
    Span {
        #[expect(dead_code, reason = "kept, not read: librados reads it")]
        span: Span,
    },
}

/// An operation that changes an object.
#[derive(Debug)]
pub struct WriteOp {
    op: bindings::rados_write_op_t,
    written: Vec<Written>,
    /// Where librados stores the result of a comparison of bytes: the place stays valid until the end.
    compared: *mut c_int,
}

// SAFETY: the operation is a value without ties to a thread, and only its owner uses it.
unsafe impl Send for WriteOp {}

impl Default for WriteOp {
    fn default() -> Self {
        WriteOp::new()
    }
}

impl WriteOp {
    /// An operation without steps.
    #[must_use]
    pub fn new() -> WriteOp {
        WriteOp {
            // SAFETY: makes a new operation.
            op: unsafe { bindings::rados_create_write_op() },
            written: Vec::new(),
            compared: Box::into_raw(Box::new(0)),
        }
    }

    pub(crate) fn handle(&self) -> bindings::rados_write_op_t {
        self.op
    }

    /// Requires that the object exists: otherwise `ENOENT`.
    #[must_use]
    pub fn assert_exists(self) -> Self {
        // SAFETY: the operation is valid.
        unsafe { bindings::rados_write_op_assert_exists(self.op) };
        self
    }

    /// Makes the object; `EEXIST` if it exists.
    #[must_use]
    pub fn create_exclusive(self) -> Self {
        let exclusive = bindings::LIBRADOS_CREATE_EXCLUSIVE;
        // SAFETY: the operation is valid, and there is no category.
        unsafe { bindings::rados_write_op_create(self.op, exclusive, ptr::null()) };
        self
    }

    /// Requires that the object has `bytes` at `offset`. Bytes beyond its end, and all bytes of a missing object, compare as zeros.
    #[must_use]
    pub fn compare(self, offset: u64, bytes: &[u8]) -> Self {
        // SAFETY: the operation is valid, the bytes are copied before this returns, and the place of the result lives as long as the
        // operation.
        unsafe {
            bindings::rados_write_op_cmpext(
                self.op,
                bytes.as_ptr().cast::<c_char>(),
                bytes.len(),
                offset,
                self.compared,
            );
        }
        self
    }

    /// Requires that the attribute `name` compares to `value` in this way: otherwise `ECANCELED`; `ENOENT` if the object is missing.
    #[must_use]
    pub fn compare_attribute(self, name: &CStr, comparison: Comparison, value: &[u8]) -> Self {
        let operator = match comparison {
            Comparison::Equal => EQUAL,
            Comparison::AtLeast => AT_LEAST,
        };
        // SAFETY: the operation is valid, and name and value are copied before this returns.
        unsafe {
            bindings::rados_write_op_cmpxattr(
                self.op,
                name.as_ptr(),
                operator,
                value.as_ptr().cast::<c_char>(),
                value.len(),
            );
        }
        self
    }

    /// Sets the attribute `name`.
    #[must_use]
    pub fn set_attribute(self, name: &CStr, value: &[u8]) -> Self {
        // SAFETY: the operation is valid, and name and value are copied before this returns.
        unsafe {
            bindings::rados_write_op_setxattr(
                self.op,
                name.as_ptr(),
                value.as_ptr().cast::<c_char>(),
                value.len(),
            );
        }
        self
    }

    /// Writes `bytes` at `offset`.
    #[must_use]
    pub fn write(mut self, offset: u64, bytes: Vec<u8>) -> Self {
        // SAFETY: the operation is valid, and keeps the bytes until its end.
        unsafe {
            bindings::rados_write_op_write(
                self.op,
                bytes.as_ptr().cast::<c_char>(),
                bytes.len(),
                offset,
            );
        }
        self.written.push(Written::Bytes { bytes });
        self
    }

    /// Writes `span` at `offset`.
    #[must_use]
    pub fn write_span(mut self, offset: u64, span: Span) -> Self {
        // SAFETY: the operation is valid, and keeps the span, and so the mapping, until its end.
        unsafe {
            bindings::rados_write_op_write(
                self.op,
                span.address().cast_const().cast::<c_char>(),
                span.len(),
                offset,
            );
        }
        self.written.push(Written::Span { span });
        self
    }

    /// Replaces the object's bytes by `bytes`.
    #[must_use]
    pub fn write_full(mut self, bytes: Vec<u8>) -> Self {
        // SAFETY: the operation is valid, and keeps the bytes until its end.
        unsafe {
            bindings::rados_write_op_write_full(
                self.op,
                bytes.as_ptr().cast::<c_char>(),
                bytes.len(),
            );
        }
        self.written.push(Written::Bytes { bytes });
        self
    }

    /// Frees `len` bytes at `offset`, which then read as zeros. Does not make the object.
    #[must_use]
    pub fn zero(self, offset: u64, len: u64) -> Self {
        // SAFETY: the operation is valid.
        unsafe { bindings::rados_write_op_zero(self.op, offset, len) };
        self
    }

    /// Sets an allocation hint of the object; storage may ignore it.
    #[must_use]
    pub fn hint(self, hint: Hint) -> Self {
        let flags = bindings::LIBRADOS_ALLOC_HINT_FLAG_RANDOM_READ
            | bindings::LIBRADOS_ALLOC_HINT_FLAG_RANDOM_WRITE;
        let (object_len, write_len) = (hint.object_len, hint.write_len);
        // SAFETY: the operation is valid.
        unsafe {
            bindings::rados_write_op_set_alloc_hint2(self.op, object_len, write_len, flags);
        }
        self
    }

    /// Removes the object: `ENOENT` if there is none.
    #[must_use]
    pub fn remove(self) -> Self {
        // SAFETY: the operation is valid.
        unsafe { bindings::rados_write_op_remove(self.op) };
        self
    }

    /// Sets `key` of the object's sorted map to `value`, and makes the object if it is missing.
    #[must_use]
    pub fn set_key(self, key: &[u8], value: &[u8]) -> Self {
        let (keys, values) = ([key.as_ptr().cast()], [value.as_ptr().cast()]);
        let (key_lens, value_lens) = ([key.len()], [value.len()]);
        // SAFETY: the operation is valid, each array has one element, as its length argument states, and all bytes are copied before this
        // returns.
        unsafe {
            bindings::rados_write_op_omap_set2(
                self.op,
                keys.as_ptr(),
                values.as_ptr(),
                key_lens.as_ptr(),
                value_lens.as_ptr(),
                1,
            );
        }
        self
    }

    /// Removes `keys` from the object's sorted map; missing ones are not an error.
    #[must_use]
    pub fn remove_keys(self, keys: &[Vec<u8>]) -> Self {
        let pointers: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr().cast()).collect();
        let lens: Vec<usize> = keys.iter().map(Vec::len).collect();
        // SAFETY: the operation is valid, both arrays have as many elements as there are keys, and all bytes are copied before this
        // returns.
        unsafe {
            bindings::rados_write_op_omap_rm_keys2(
                self.op,
                pointers.as_ptr(),
                lens.as_ptr(),
                keys.len(),
            );
        }
        self
    }
}

impl Drop for WriteOp {
    fn drop(&mut self) {
        // SAFETY: the operation is ours, was not started or has ended, and is not used after this.
        unsafe { bindings::rados_release_write_op(self.op) };
        // SAFETY: the place came from a box, and after the release of the operation nobody writes there.
        drop(unsafe { Box::from_raw(self.compared) });
    }
}
