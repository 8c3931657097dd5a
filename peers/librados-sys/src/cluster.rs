//! The connection to a cluster.
//!
//! Every call here may block on the cluster, so none may be made on a thread that serves requests.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;

use crate::bindings;
use crate::error::{Code, RadosError};
use crate::handle::Handle;
use crate::pool::Pool;

/// Bytes of a cluster's id as text, with the byte that ends it.
const FSID_LEN: usize = 37;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The configuration file; `None`: Ceph's default file.
    pub conf: Option<PathBuf>,
    /// The client, without `client.`.
    pub client: String,
    /// The file with the key; `None`: the one that the configuration names.
    pub keyring: Option<PathBuf>,
    /// Timeout for the monitors. Calls on objects have no timeout: an abandoned one could still be carried out.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            conf: None,
            client: "admin".to_owned(),
            keyring: None,
            timeout: Duration::from_secs(8),
        }
    }
}

/// A connection to a cluster, an identity of its own for the blocklist.
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Handle>);

/// `text` as a C string.
pub(crate) fn c_string(text: &str) -> Result<CString, RadosError> {
    CString::new(text).map_err(|_zero| {
        let code = Code::of(-libc::EINVAL).unwrap_or(Code::CANCELED);
        RadosError::new(format!("`{}` has a zero byte", text.escape_debug()), code)
    })
}

impl Cluster {
    /// Connects.
    ///
    /// # Errors
    /// `ENOENT`: no configuration, or no key; `ETIMEDOUT`: no monitor answers; `EACCES` and `EPERM`: the monitor does not accept the key.
    pub fn connect(options: &ConnectOptions) -> Result<Cluster, RadosError> {
        let client = c_string(&options.client)?;
        let mut rados = ptr::null_mut();
        // SAFETY: both pointers are valid for the call, which copies the text.
        let created = unsafe { bindings::rados_create(&raw mut rados, client.as_ptr()) };
        RadosError::check(created, || format!("make client.{}", options.client))?;
        let cluster = Cluster(Arc::new(Handle(rados)));
        cluster.read_conf(options)?;
        let seconds = options.timeout.as_secs().max(1).to_string();
        let keyring = options.keyring.as_ref().map(|path| path.to_string_lossy());
        // The callers limit the bytes under way: with a limit of librados, `Pool`'s calls would block.
        let unlimited = "1099511627776";
        let fixed = [
            ("client_mount_timeout", seconds.as_str()),
            ("rados_mon_op_timeout", &seconds),
            ("rados_osd_op_timeout", "0"),
            ("objecter_inflight_ops", "1048576"),
            ("objecter_inflight_op_bytes", unlimited),
            ("log_to_stderr", "false"),
            ("err_to_stderr", "false"),
            ("log_file", ""),
            ("admin_socket", ""),
        ];
        for (name, value) in fixed {
            cluster.set(name, value)?;
        }
        if let Some(keyring) = keyring {
            cluster.set("keyring", &keyring)?;
        }
        // SAFETY: the handle is valid.
        let connected = unsafe { bindings::rados_connect(cluster.handle()) };
        RadosError::check(connected, || {
            format!("connect as client.{}", options.client)
        })?;
        Ok(cluster)
    }

    fn handle(&self) -> bindings::rados_t {
        self.0.0
    }

    fn read_conf(&self, options: &ConnectOptions) -> Result<(), RadosError> {
        let path = match &options.conf {
            Some(path) => Some(c_string(&path.to_string_lossy())?),
            None => None,
        };
        let path_ptr = path.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: the handle is valid, and the path is null, which means the default places, or a text that lives until the end.
        let read = unsafe { bindings::rados_conf_read_file(self.handle(), path_ptr) };
        RadosError::check(read, || match &options.conf {
            Some(path) => format!("read `{}`", path.display()),
            None => "read the configuration of Ceph".to_owned(),
        })
    }

    fn set(&self, name: &str, value: &str) -> Result<(), RadosError> {
        let (option, text) = (c_string(name)?, c_string(value)?);
        // SAFETY: the handle is valid, and both texts live until the call returns.
        let set =
            unsafe { bindings::rados_conf_set(self.handle(), option.as_ptr(), text.as_ptr()) };
        RadosError::check(set, || format!("set {name} = {value}"))
    }

    /// The cluster's id, as text.
    ///
    /// # Errors
    /// The error of librados.
    pub fn fsid(&self) -> Result<String, RadosError> {
        let mut text = [0_u8; FSID_LEN];
        // SAFETY: the handle is valid and the buffer has the length given.
        let result = unsafe {
            bindings::rados_cluster_fsid(
                self.handle(),
                text.as_mut_ptr().cast::<c_char>(),
                FSID_LEN,
            )
        };
        RadosError::check(result, || "ask for the cluster's id".to_owned())?;
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    /// This client's addresses, in the syntax of [`Cluster::blocklist`].
    ///
    /// # Errors
    /// The error of librados.
    pub fn addresses(&self) -> Result<String, RadosError> {
        let mut text: *mut c_char = ptr::null_mut();
        // SAFETY: the handle is valid, and the pointer is a valid place for the result.
        let result = unsafe { bindings::rados_getaddrs(self.handle(), &raw mut text) };
        RadosError::check(result, || "ask for our addresses".to_owned())?;
        if text.is_null() {
            return Ok(String::new());
        }
        // SAFETY: on success librados has stored a text that ends with a zero byte.
        let addresses = unsafe { CStr::from_ptr(text) };
        let addresses = addresses.to_string_lossy().into_owned();
        // SAFETY: the text came from librados, which frees such a buffer with this call, and it is not used after it.
        unsafe { bindings::rados_buffer_free(text) };
        Ok(addresses)
    }

    /// Has the OSDs refuse everything from the client at `address`, for `seconds` (0: the cluster's default).
    ///
    /// # Errors
    /// The error of the monitors; `EINVAL` for an address that is not valid.
    pub fn blocklist(&self, address: &str, seconds: u32) -> Result<(), RadosError> {
        let text = c_string(address)?;
        // SAFETY: the handle is valid; librados reads the text and does not change it, although its type is not `const`.
        let result = unsafe {
            bindings::rados_blocklist_add(self.handle(), text.as_ptr().cast_mut(), seconds)
        };
        RadosError::check(result, || format!("blocklist {address}"))
    }

    /// Waits until this client knows the newest map of the OSDs: operations sent from then on take effect after the blocklist in that map.
    ///
    /// # Errors
    /// The error of librados.
    pub fn wait_for_latest_osdmap(&self) -> Result<(), RadosError> {
        // SAFETY: the handle is valid.
        let result = unsafe { bindings::rados_wait_for_latest_osdmap(self.handle()) };
        RadosError::check(result, || "wait for the newest map of the OSDs".to_owned())
    }

    /// Sends a command in JSON to the monitors; returns their answer.
    ///
    /// # Errors
    /// The error of the monitors, with their text.
    pub fn mon_command(&self, command: &str) -> Result<Vec<u8>, RadosError> {
        let text = c_string(command)?;
        let mut commands = [text.as_ptr()];
        let (mut out, mut out_len) = (ptr::null_mut::<c_char>(), 0);
        let (mut status, mut status_len) = (ptr::null_mut::<c_char>(), 0);
        // SAFETY: the handle is valid, the one command lives until the end, there is no input, and the results have valid places.
        let result = unsafe {
            bindings::rados_mon_command(
                self.handle(),
                commands.as_mut_ptr(),
                commands.len(),
                ptr::null(),
                0,
                &raw mut out,
                &raw mut out_len,
                &raw mut status,
                &raw mut status_len,
            )
        };
        let out = take_buffer(out, out_len);
        let status = take_buffer(status, status_len);
        RadosError::check(result, || {
            format!("{command}: {}", String::from_utf8_lossy(&status))
        })?;
        Ok(out)
    }

    /// The namespace `namespace` of the pool `name`; empty: the default namespace.
    ///
    /// # Errors
    /// `ENOENT`: there is no such pool.
    pub fn pool(&self, name: &str, namespace: &str) -> Result<Pool, RadosError> {
        let (c_name, namespace) = (c_string(name)?, c_string(namespace)?);
        let mut context = ptr::null_mut();
        // SAFETY: the handle is valid, the name lives until the end, and the pointer is a valid place for the result.
        let result = unsafe {
            bindings::rados_ioctx_create(self.handle(), c_name.as_ptr(), &raw mut context)
        };
        RadosError::check(result, || format!("open the pool `{name}`"))?;
        // SAFETY: the context was made above, nobody else uses it yet, and the namespace lives until the call returns.
        unsafe { bindings::rados_ioctx_set_namespace(context, namespace.as_ptr()) };
        // A full pool refuses writes instead of keeping them, and deletions are carried out.
        // SAFETY: as above.
        unsafe { bindings::rados_set_pool_full_try(context) };
        Ok(Pool::new(context, Arc::clone(&self.0)))
    }
}

/// Copies a buffer that librados has allocated, and frees it.
fn take_buffer(buffer: *mut c_char, len: usize) -> Vec<u8> {
    if buffer.is_null() {
        return Vec::new();
    }
    // SAFETY: librados has stored `len` bytes there.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), len) };
    let bytes = bytes.to_vec();
    // SAFETY: the buffer came from librados, which frees such a buffer with this call, and it is not used after it.
    unsafe { bindings::rados_buffer_free(buffer) };
    bytes
}
