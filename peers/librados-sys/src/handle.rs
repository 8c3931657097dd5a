//! The connection that a cluster and its pools share.

use crate::bindings;

/// The handle. librados does its own locking.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) bindings::rados_t);

// SAFETY: a `rados_t` may be used by several threads at a time, and by other threads than its maker (librados.h, `rados_create`: the handle
// is reference counted and locks shared state).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle came from `rados_create`; every `Pool` that uses it holds this `Handle`, so none is left.
        unsafe { bindings::rados_shutdown(self.0) };
    }
}
