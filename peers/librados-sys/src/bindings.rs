// rados/librados.h of librados-dev 16.2.15 (Debian 12) through bindgen 0.72.1, for the functions that this crate calls.

pub const LIBRADOS_CREATE_EXCLUSIVE: i32 = 1;
pub type __time_t = ::core::ffi::c_long;
pub type time_t = __time_t;
pub const LIBRADOS_CMPXATTR_OP_EQ: _bindgen_ty_11 = 1;
pub const LIBRADOS_CMPXATTR_OP_NE: _bindgen_ty_11 = 2;
pub const LIBRADOS_CMPXATTR_OP_GT: _bindgen_ty_11 = 3;
pub const LIBRADOS_CMPXATTR_OP_GTE: _bindgen_ty_11 = 4;
pub const LIBRADOS_CMPXATTR_OP_LT: _bindgen_ty_11 = 5;
pub const LIBRADOS_CMPXATTR_OP_LTE: _bindgen_ty_11 = 6;
pub type _bindgen_ty_11 = ::core::ffi::c_uint;
pub const LIBRADOS_OPERATION_NOFLAG: _bindgen_ty_12 = 0;
pub const LIBRADOS_OPERATION_BALANCE_READS: _bindgen_ty_12 = 1;
pub const LIBRADOS_OPERATION_LOCALIZE_READS: _bindgen_ty_12 = 2;
pub const LIBRADOS_OPERATION_ORDER_READS_WRITES: _bindgen_ty_12 = 4;
pub const LIBRADOS_OPERATION_IGNORE_CACHE: _bindgen_ty_12 = 8;
pub const LIBRADOS_OPERATION_SKIPRWLOCKS: _bindgen_ty_12 = 16;
pub const LIBRADOS_OPERATION_IGNORE_OVERLAY: _bindgen_ty_12 = 32;
pub const LIBRADOS_OPERATION_FULL_TRY: _bindgen_ty_12 = 64;
pub const LIBRADOS_OPERATION_FULL_FORCE: _bindgen_ty_12 = 128;
pub const LIBRADOS_OPERATION_IGNORE_REDIRECT: _bindgen_ty_12 = 256;
pub const LIBRADOS_OPERATION_ORDERSNAP: _bindgen_ty_12 = 512;
pub const LIBRADOS_OPERATION_RETURNVEC: _bindgen_ty_12 = 1024;
pub type _bindgen_ty_12 = ::core::ffi::c_uint;
pub const LIBRADOS_ALLOC_HINT_FLAG_SEQUENTIAL_WRITE: _bindgen_ty_13 = 1;
pub const LIBRADOS_ALLOC_HINT_FLAG_RANDOM_WRITE: _bindgen_ty_13 = 2;
pub const LIBRADOS_ALLOC_HINT_FLAG_SEQUENTIAL_READ: _bindgen_ty_13 = 4;
pub const LIBRADOS_ALLOC_HINT_FLAG_RANDOM_READ: _bindgen_ty_13 = 8;
pub const LIBRADOS_ALLOC_HINT_FLAG_APPEND_ONLY: _bindgen_ty_13 = 16;
pub const LIBRADOS_ALLOC_HINT_FLAG_IMMUTABLE: _bindgen_ty_13 = 32;
pub const LIBRADOS_ALLOC_HINT_FLAG_SHORTLIVED: _bindgen_ty_13 = 64;
pub const LIBRADOS_ALLOC_HINT_FLAG_LONGLIVED: _bindgen_ty_13 = 128;
pub const LIBRADOS_ALLOC_HINT_FLAG_COMPRESSIBLE: _bindgen_ty_13 = 256;
pub const LIBRADOS_ALLOC_HINT_FLAG_INCOMPRESSIBLE: _bindgen_ty_13 = 512;
pub type _bindgen_ty_13 = ::core::ffi::c_uint;
pub type rados_t = *mut ::core::ffi::c_void;
pub type rados_ioctx_t = *mut ::core::ffi::c_void;
pub type rados_xattrs_iter_t = *mut ::core::ffi::c_void;
pub type rados_omap_iter_t = *mut ::core::ffi::c_void;
pub type rados_write_op_t = *mut ::core::ffi::c_void;
pub type rados_read_op_t = *mut ::core::ffi::c_void;
pub type rados_completion_t = *mut ::core::ffi::c_void;
unsafe extern "C" {
    pub fn rados_create(
        cluster: *mut rados_t,
        id: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_connect(cluster: rados_t) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_shutdown(cluster: rados_t);
}
unsafe extern "C" {
    pub fn rados_conf_read_file(
        cluster: rados_t,
        path: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_conf_set(
        cluster: rados_t,
        option: *const ::core::ffi::c_char,
        value: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_cluster_fsid(
        cluster: rados_t,
        buf: *mut ::core::ffi::c_char,
        len: usize,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_wait_for_latest_osdmap(cluster: rados_t) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_ioctx_create(
        cluster: rados_t,
        pool_name: *const ::core::ffi::c_char,
        ioctx: *mut rados_ioctx_t,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_ioctx_destroy(io: rados_ioctx_t);
}
unsafe extern "C" {
    pub fn rados_ioctx_pool_requires_alignment2(
        io: rados_ioctx_t,
        req: *mut ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_ioctx_pool_required_alignment2(
        io: rados_ioctx_t,
        alignment: *mut u64,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_ioctx_set_namespace(io: rados_ioctx_t, nspace: *const ::core::ffi::c_char);
}
unsafe extern "C" {
    pub fn rados_getxattrs_next(
        iter: rados_xattrs_iter_t,
        name: *mut *const ::core::ffi::c_char,
        val: *mut *const ::core::ffi::c_char,
        len: *mut usize,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_getxattrs_end(iter: rados_xattrs_iter_t);
}
unsafe extern "C" {
    pub fn rados_omap_get_next2(
        iter: rados_omap_iter_t,
        key: *mut *mut ::core::ffi::c_char,
        val: *mut *mut ::core::ffi::c_char,
        key_len: *mut usize,
        val_len: *mut usize,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_omap_get_end(iter: rados_omap_iter_t);
}
pub type rados_callback_t = ::core::option::Option<
    unsafe extern "C" fn(cb: rados_completion_t, arg: *mut ::core::ffi::c_void),
>;
unsafe extern "C" {
    pub fn rados_aio_create_completion2(
        cb_arg: *mut ::core::ffi::c_void,
        cb_complete: rados_callback_t,
        pc: *mut rados_completion_t,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_aio_get_return_value(c: rados_completion_t) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_aio_release(c: rados_completion_t);
}
unsafe extern "C" {
    pub fn rados_aio_write(
        io: rados_ioctx_t,
        oid: *const ::core::ffi::c_char,
        completion: rados_completion_t,
        buf: *const ::core::ffi::c_char,
        len: usize,
        off: u64,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_aio_read(
        io: rados_ioctx_t,
        oid: *const ::core::ffi::c_char,
        completion: rados_completion_t,
        buf: *mut ::core::ffi::c_char,
        len: usize,
        off: u64,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_create_write_op() -> rados_write_op_t;
}
unsafe extern "C" {
    pub fn rados_release_write_op(write_op: rados_write_op_t);
}
unsafe extern "C" {
    pub fn rados_write_op_assert_exists(write_op: rados_write_op_t);
}
unsafe extern "C" {
    pub fn rados_write_op_cmpext(
        write_op: rados_write_op_t,
        cmp_buf: *const ::core::ffi::c_char,
        cmp_len: usize,
        off: u64,
        prval: *mut ::core::ffi::c_int,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_cmpxattr(
        write_op: rados_write_op_t,
        name: *const ::core::ffi::c_char,
        comparison_operator: u8,
        value: *const ::core::ffi::c_char,
        value_len: usize,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_setxattr(
        write_op: rados_write_op_t,
        name: *const ::core::ffi::c_char,
        value: *const ::core::ffi::c_char,
        value_len: usize,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_create(
        write_op: rados_write_op_t,
        exclusive: ::core::ffi::c_int,
        category: *const ::core::ffi::c_char,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_write(
        write_op: rados_write_op_t,
        buffer: *const ::core::ffi::c_char,
        len: usize,
        offset: u64,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_write_full(
        write_op: rados_write_op_t,
        buffer: *const ::core::ffi::c_char,
        len: usize,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_remove(write_op: rados_write_op_t);
}
unsafe extern "C" {
    pub fn rados_write_op_zero(write_op: rados_write_op_t, offset: u64, len: u64);
}
unsafe extern "C" {
    pub fn rados_write_op_omap_set2(
        write_op: rados_write_op_t,
        keys: *const *const ::core::ffi::c_char,
        vals: *const *const ::core::ffi::c_char,
        key_lens: *const usize,
        val_lens: *const usize,
        num: usize,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_omap_rm_keys2(
        write_op: rados_write_op_t,
        keys: *const *const ::core::ffi::c_char,
        key_lens: *const usize,
        keys_len: usize,
    );
}
unsafe extern "C" {
    pub fn rados_write_op_set_alloc_hint2(
        write_op: rados_write_op_t,
        expected_object_size: u64,
        expected_write_size: u64,
        flags: u32,
    );
}
unsafe extern "C" {
    pub fn rados_aio_write_op_operate(
        write_op: rados_write_op_t,
        io: rados_ioctx_t,
        completion: rados_completion_t,
        oid: *const ::core::ffi::c_char,
        mtime: *mut time_t,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_create_read_op() -> rados_read_op_t;
}
unsafe extern "C" {
    pub fn rados_release_read_op(read_op: rados_read_op_t);
}
unsafe extern "C" {
    pub fn rados_read_op_getxattrs(
        read_op: rados_read_op_t,
        iter: *mut rados_xattrs_iter_t,
        prval: *mut ::core::ffi::c_int,
    );
}
unsafe extern "C" {
    pub fn rados_read_op_stat(
        read_op: rados_read_op_t,
        psize: *mut u64,
        pmtime: *mut time_t,
        prval: *mut ::core::ffi::c_int,
    );
}
unsafe extern "C" {
    pub fn rados_read_op_read(
        read_op: rados_read_op_t,
        offset: u64,
        len: usize,
        buffer: *mut ::core::ffi::c_char,
        bytes_read: *mut usize,
        prval: *mut ::core::ffi::c_int,
    );
}
unsafe extern "C" {
    pub fn rados_read_op_omap_get_vals2(
        read_op: rados_read_op_t,
        start_after: *const ::core::ffi::c_char,
        filter_prefix: *const ::core::ffi::c_char,
        max_return: u64,
        iter: *mut rados_omap_iter_t,
        pmore: *mut ::core::ffi::c_uchar,
        prval: *mut ::core::ffi::c_int,
    );
}
unsafe extern "C" {
    pub fn rados_aio_read_op_operate(
        read_op: rados_read_op_t,
        io: rados_ioctx_t,
        completion: rados_completion_t,
        oid: *const ::core::ffi::c_char,
        flags: ::core::ffi::c_int,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_blocklist_add(
        cluster: rados_t,
        client_address: *mut ::core::ffi::c_char,
        expire_seconds: u32,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_getaddrs(
        cluster: rados_t,
        addrs: *mut *mut ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_set_pool_full_try(io: rados_ioctx_t);
}
unsafe extern "C" {
    pub fn rados_mon_command(
        cluster: rados_t,
        cmd: *mut *const ::core::ffi::c_char,
        cmdlen: usize,
        inbuf: *const ::core::ffi::c_char,
        inbuflen: usize,
        outbuf: *mut *mut ::core::ffi::c_char,
        outbuflen: *mut usize,
        outs: *mut *mut ::core::ffi::c_char,
        outslen: *mut usize,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn rados_buffer_free(buf: *mut ::core::ffi::c_char);
}
