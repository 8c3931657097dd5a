//! Maps failed calls on objects to error codes.
//!
//! | errno | code | what follows |
//! |---|---|---|
//! | ENOENT | `not-found` | the caller decides: a hole, or an object that is missing |
//! | EEXIST | `exists` | the caller decides |
//! | ENOSPC, EDQUOT | `no-space` | a guest's write waits for space: cluster, pool or quota is full |
//! | ENOMEM | `no-memory` | waits |
//! | EFBIG, E2BIG, EMSGSIZE | `too-large` | fails: a limit of the cluster |
//! | ESHUTDOWN | `stale` | this client was blocklisted: the process ends |
//! | EPERM, EACCES | `denied` | fails: the client's caps |
//! | EOPNOTSUPP | `unsupported` | fails: not on a pool of this kind |
//! | EINVAL, ERANGE | `invalid` | fails |
//! | ETIMEDOUT, ENOTCONN | `unavailable` | fails: no monitor answers |
//! | any other | `io` | fails |

use archipelago_protocol::ErrorCode;
use librados_sys::Code;

/// The code of a failed call.
pub(crate) fn code_of(code: Code) -> ErrorCode {
    match code.errno() {
        libc::ENOENT => ErrorCode::NotFound,
        libc::EEXIST => ErrorCode::Exists,
        libc::ENOSPC | libc::EDQUOT => ErrorCode::NoSpace,
        libc::ENOMEM => ErrorCode::NoMemory,
        libc::EFBIG | libc::E2BIG | libc::EMSGSIZE => ErrorCode::TooLarge,
        libc::ESHUTDOWN => ErrorCode::Stale,
        libc::EPERM | libc::EACCES => ErrorCode::Denied,
        libc::EOPNOTSUPP => ErrorCode::Unsupported,
        libc::EINVAL | libc::ERANGE => ErrorCode::Invalid,
        libc::ETIMEDOUT | libc::ENOTCONN => ErrorCode::Unavailable,
        _ => ErrorCode::Io,
    }
}
