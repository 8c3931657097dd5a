//! Several reads of one object, of one state of it.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uchar};
use std::ptr;

use crate::bindings;

/// Where librados stores the results of an operation.
#[derive(Debug)]
struct Results {
    attributes: Cell<bindings::rados_xattrs_iter_t>,
    keys: Cell<bindings::rados_omap_iter_t>,
    more: Cell<c_uchar>,
    len: Cell<u64>,
    data_len: Cell<usize>,
    /// Not read: if a step fails, the whole operation fails.
    codes: [Cell<c_int>; 4],
}

/// The results of an operation; those of missing steps are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Attributes by name.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys of the sorted map, in order.
    pub keys: Vec<Vec<u8>>,
    /// Values of these keys.
    pub values: Vec<Vec<u8>>,
    /// Whether there are further keys.
    pub more: bool,
    /// The object's length in bytes.
    pub len: u64,
    /// Its bytes.
    pub data: Vec<u8>,
}

impl Found {
    /// The attribute `name`; empty if there is none.
    #[must_use]
    pub fn attribute(&self, name: &CStr) -> &[u8] {
        let named = |(other, _): &&(Vec<u8>, Vec<u8>)| other == name.to_bytes();
        let found = self.attributes.iter().find(named);
        found.map_or(&[], |(_, value)| value)
    }
}

/// An operation that reads an object. Each step may be given once.
#[derive(Debug)]
pub struct ReadOp {
    op: bindings::rados_read_op_t,
    /// From a box: its address does not change.
    results: *mut Results,
    data: Vec<u8>,
}

// SAFETY: the operation is a value without ties to a thread, and only its owner uses it.
unsafe impl Send for ReadOp {}

impl Default for ReadOp {
    fn default() -> Self {
        ReadOp::new()
    }
}

impl ReadOp {
    /// An operation without steps.
    #[must_use]
    pub fn new() -> ReadOp {
        let results = Results {
            attributes: Cell::new(ptr::null_mut()),
            keys: Cell::new(ptr::null_mut()),
            more: Cell::new(0),
            len: Cell::new(0),
            data_len: Cell::new(0),
            codes: [const { Cell::new(0) }; 4],
        };
        ReadOp {
            // SAFETY: makes a new operation.
            op: unsafe { bindings::rados_create_read_op() },
            results: Box::into_raw(Box::new(results)),
            data: Vec::new(),
        }
    }

    pub(crate) fn handle(&self) -> bindings::rados_read_op_t {
        self.op
    }

    /// The places of the results. librados writes there until the operation has ended: they are cells, and are not read before.
    fn results(&self) -> &Results {
        // SAFETY: the pointer came from a box that lives as long as the operation.
        unsafe { &*self.results }
    }

    /// Reads the object's attributes.
    #[must_use]
    pub fn attributes(self) -> Self {
        let results = self.results();
        // SAFETY: the operation is valid, and the places of the results live as long as it.
        unsafe {
            bindings::rados_read_op_getxattrs(
                self.op,
                results.attributes.as_ptr(),
                results.codes[0].as_ptr(),
            );
        }
        self
    }

    /// Reads the keys of its sorted map above `after`, with their values, `max` at most.
    #[must_use]
    pub fn keys_above(self, after: &CStr, max: u64) -> Self {
        let results = self.results();
        // SAFETY: the operation is valid, the texts are copied before this returns, and the places of the results live as long as the
        // operation.
        unsafe {
            bindings::rados_read_op_omap_get_vals2(
                self.op,
                after.as_ptr(),
                c"".as_ptr(),
                max,
                results.keys.as_ptr(),
                results.more.as_ptr(),
                results.codes[1].as_ptr(),
            );
        }
        self
    }

    /// Reads its length.
    #[must_use]
    pub fn len(self) -> Self {
        let results = self.results();
        // SAFETY: the operation is valid, no time is wanted, and the places of the results live as long as the operation.
        unsafe {
            bindings::rados_read_op_stat(
                self.op,
                results.len.as_ptr(),
                ptr::null_mut(),
                results.codes[2].as_ptr(),
            );
        }
        self
    }

    /// Reads up to `len` bytes at `offset`.
    #[must_use]
    pub fn read(mut self, offset: u64, len: usize) -> Self {
        self.data = vec![0; len];
        let address = self.data.as_mut_ptr().cast::<c_char>();
        let results = self.results();
        // SAFETY: the operation is valid, and keeps the buffer and the places of the results until its end.
        unsafe {
            bindings::rados_read_op_read(
                self.op,
                offset,
                len,
                address,
                results.data_len.as_ptr(),
                results.codes[3].as_ptr(),
            );
        }
        self
    }

    /// The results of an operation that has succeeded.
    pub(crate) fn found(mut self) -> Found {
        let mut data = std::mem::take(&mut self.data);
        let results = self.results();
        data.truncate(results.data_len.get());
        let (keys, values) = take_keys(results.keys.get());
        Found {
            attributes: take_attributes(results.attributes.get()),
            keys,
            values,
            more: results.more.get() != 0,
            len: results.len.get(),
            data,
        }
    }
}

impl Drop for ReadOp {
    fn drop(&mut self) {
        // SAFETY: the operation is ours, was not started or has ended, and is not used after this.
        unsafe { bindings::rados_release_read_op(self.op) };
        // SAFETY: the results came from a box, and after the release of the operation nobody writes there.
        let results = unsafe { Box::from_raw(self.results) };
        if !results.attributes.get().is_null() {
            // SAFETY: librados made the iterator for this operation, and it is not used after this.
            unsafe { bindings::rados_getxattrs_end(results.attributes.get()) };
        }
        if !results.keys.get().is_null() {
            // SAFETY: as above.
            unsafe { bindings::rados_omap_get_end(results.keys.get()) };
        }
    }
}

/// A copy of `len` bytes of librados; empty if there are none.
fn copy(bytes: *const c_char, len: usize) -> Vec<u8> {
    if bytes.is_null() || len == 0 {
        return Vec::new();
    }
    // SAFETY: librados has returned a pointer to so many bytes, and keeps them while their iterator lives.
    unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) }.to_vec()
}

fn take_attributes(iterator: bindings::rados_xattrs_iter_t) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    if iterator.is_null() {
        return all;
    }
    loop {
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the iterator is valid, and the places of the results are.
        let result = unsafe {
            bindings::rados_getxattrs_next(iterator, &raw mut name, &raw mut value, &raw mut len)
        };
        if result < 0 || name.is_null() {
            return all;
        }
        // SAFETY: a name that is not null ends with a zero byte, and lives as long as the iterator.
        let name = unsafe { CStr::from_ptr(name) };
        all.push((name.to_bytes().to_vec(), copy(value, len)));
    }
}

fn take_keys(iterator: bindings::rados_omap_iter_t) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    if iterator.is_null() {
        return (keys, values);
    }
    loop {
        let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
        let (mut key_len, mut value_len) = (0, 0);
        // SAFETY: the iterator is valid, and the places of the results are.
        let result = unsafe {
            bindings::rados_omap_get_next2(
                iterator,
                &raw mut key,
                &raw mut value,
                &raw mut key_len,
                &raw mut value_len,
            )
        };
        if result < 0 || key.is_null() {
            return (keys, values);
        }
        keys.push(copy(key, key_len));
        values.push(copy(value, value_len));
    }
}
