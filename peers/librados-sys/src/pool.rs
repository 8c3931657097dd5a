//! Calls on the objects of one namespace of a pool.
//!
//! Each call returns at once; its completion comes from the [`Completions`] that the call got.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::Arc;

use nix::libc;
use xseg::Span;

use crate::bindings;
use crate::completions::{Completions, Held};
use crate::error::RadosError;
use crate::handle::Handle;
use crate::read_op::ReadOp;
use crate::write_op::WriteOp;

/// Flags of all calls: a full cluster refuses calls that need space, and carries out the others.
const FLAGS: c_int = bindings::LIBRADOS_OPERATION_FULL_TRY.cast_signed();

/// The error of a call that got the resources of another kind of call, which is a bug: it is refused, and ends.
const WRONG_HELD: c_int = -libc::EINVAL;

/// One namespace of a pool.
#[derive(Debug)]
pub struct Pool {
    context: bindings::rados_ioctx_t,
    _cluster: Arc<Handle>,
}

// SAFETY: a `rados_ioctx_t` may be used by other threads than its maker; its settings are not changed after it was made.
unsafe impl Send for Pool {}

impl Pool {
    pub(crate) fn new(context: bindings::rados_ioctx_t, cluster: Arc<Handle>) -> Pool {
        Pool {
            context,
            _cluster: cluster,
        }
    }

    /// Reads into `span` from `offset` on: as many bytes as the object has there. The completion returns the span.
    pub fn read(
        &self,
        completions: &mut Completions,
        token: u64,
        object: &CStr,
        offset: u64,
        span: Span,
    ) {
        self.start_read(completions, token, object, offset, Held::Span(span));
    }

    /// Reads into a buffer.
    pub fn read_bytes(
        &self,
        completions: &mut Completions,
        token: u64,
        object: &CStr,
        offset: u64,
        buffer: Vec<u8>,
    ) {
        self.start_read(completions, token, object, offset, Held::Bytes(buffer));
    }

    fn start_read(
        &self,
        completions: &mut Completions,
        token: u64,
        object: &CStr,
        offset: u64,
        into: Held,
    ) {
        completions.begin(token, into, |completion, held| {
            let (address, len) = match held {
                Held::Span(span) => (span.address(), span.len()),
                Held::Bytes(buffer) => (buffer.as_mut_ptr(), buffer.len()),
                _ => return WRONG_HELD,
            };
            // SAFETY: context and completion are valid, the name is copied, and the slot keeps the buffer, untouched, or the span, and
            // so the mapping, until the call ends. Nobody has a reference to memory of a region.
            unsafe {
                bindings::rados_aio_read(
                    self.context,
                    object.as_ptr(),
                    completion,
                    address.cast::<c_char>(),
                    len,
                    offset,
                )
            }
        });
    }

    /// Writes `span` at `offset`; durable on all replicas when the call completes. The completion returns the span.
    pub fn write(
        &self,
        completions: &mut Completions,
        token: u64,
        object: &CStr,
        offset: u64,
        span: Span,
    ) {
        let (address, len) = (span.address().cast_const().cast::<c_char>(), span.len());
        completions.begin(token, Held::Span(span), |completion, _held| {
            // SAFETY: context and completion are valid, the name is copied, and the memory is mapped until the call ends: the slot
            // holds its span.
            unsafe {
                bindings::rados_aio_write(
                    self.context,
                    object.as_ptr(),
                    completion,
                    address,
                    len,
                    offset,
                )
            }
        });
    }

    /// Carries out all steps of `op`, or none; durable on all replicas when the call completes.
    pub fn operate(&self, completions: &mut Completions, token: u64, object: &CStr, op: WriteOp) {
        completions.begin(token, Held::Write(op), |completion, held| {
            let Held::Write(op) = held else {
                return WRONG_HELD;
            };
            // SAFETY: context, completion and operation are valid, the name is copied, no time is given, and the slot keeps the
            // operation with its memory until the call ends.
            unsafe {
                bindings::rados_aio_write_op_operate(
                    op.handle(),
                    self.context,
                    completion,
                    object.as_ptr(),
                    ptr::null_mut(),
                    FLAGS,
                )
            }
        });
    }

    /// Carries out `op`, on one state of the object.
    pub fn query(&self, completions: &mut Completions, token: u64, object: &CStr, op: ReadOp) {
        completions.begin(token, Held::Read(op), |completion, held| {
            let Held::Read(op) = held else {
                return WRONG_HELD;
            };
            // SAFETY: context, completion and operation are valid, the name is copied, and the slot keeps the operation with the
            // places of its results until the call ends.
            unsafe {
                bindings::rados_aio_read_op_operate(
                    op.handle(),
                    self.context,
                    completion,
                    object.as_ptr(),
                    0,
                )
            }
        });
    }

    /// The granularity of appends to the pool's objects, in bytes, if it has one (erasure-coded pools without overwrites).
    ///
    /// # Errors
    /// The error of librados.
    pub fn alignment(&self) -> Result<Option<u64>, RadosError> {
        let check =
            |result| RadosError::check(result, || "ask for the pool's alignment".to_owned());
        let (mut required, mut alignment) = (0, 0);
        // SAFETY: the context is valid, and the pointer is a valid place for the result.
        check(unsafe {
            bindings::rados_ioctx_pool_requires_alignment2(self.context, &raw mut required)
        })?;
        // SAFETY: as above.
        check(unsafe {
            bindings::rados_ioctx_pool_required_alignment2(self.context, &raw mut alignment)
        })?;
        Ok((required != 0).then_some(alignment))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the context came from `rados_ioctx_create` and is not used after this; calls under way keep what they need of it.
        unsafe { bindings::rados_ioctx_destroy(self.context) };
    }
}
