//! A blocking client of the node's API: one connection per request.
//!
//! It supports only the part of HTTP/1.1 that the daemon uses in answers: `Connection: close`, and a body of known length.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use archipelago_protocol::{Access, Error, ErrorCode, Name};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::layout::{Layout, path_error};
use crate::types::{Bulk, Failure, OpenVolume};

/// Longest answer: a page of 1000 entries has less than 1 KiB each.
const ANSWER_LEN_MAX: u64 = 16 << 20;
/// Longest wait for an answer: a clean stop drains three processes within 60 s each.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(200);

/// Method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are HTTP's")]
pub enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

/// Explains why no process serves the node's socket, if it can.
type Explain = fn(&Layout) -> Option<Error>;

/// Sends requests to the daemon of one node.
#[derive(Debug, Clone)]
pub struct Client {
    layout: Layout,
    explain: Explain,
}

impl Client {
    /// A client of the node at `layout`; it does not connect yet.
    #[must_use]
    pub fn new(layout: Layout) -> Client {
        Client {
            layout,
            explain: |_layout| None,
        }
    }

    /// Uses `explain` to report why no process serves the socket, instead of the plain error.
    #[must_use]
    pub fn explaining(self, explain: Explain) -> Client {
        Client { explain, ..self }
    }

    /// Sends a request to `path`, with the body `request`.
    ///
    /// # Errors
    /// The daemon's error; [`ErrorCode::Unavailable`] if there is no daemon.
    ///
    /// # Panics
    /// If `request` cannot be encoded as JSON, which is an error of this program.
    pub fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &Q,
    ) -> Result<A, Error> {
        let mut body =
            serde_json::to_vec(request).expect("requests have string keys and no failing parts");
        if body == b"null" {
            body.clear();
        }
        let answer = self.exchange(method, path, &body)?;
        let (status, body) = split(&answer)?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(body).map_err(|error| foreign(&error.to_string()));
        }
        match serde_json::from_slice::<Failure>(body) {
            Ok(failure) => Err(failure.error),
            Err(_not_ours) => Err(foreign(&format!("status {status}"))),
        }
    }

    /// Sends a request to `path`, without a body.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Error> {
        self.call(Method::Get, path, &())
    }

    /// Opens `name` for this process, for reading or also for writing. Connect to the socket in the answer within 30 s, with the client of
    /// the crate `archipelago-segment`.
    ///
    /// # Errors
    /// As for [`Client::call`]: [`ErrorCode::InUse`] if another process has it open, [`ErrorCode::ReadOnly`] if a snapshot or image is to
    /// be written.
    pub fn open(&self, name: &Name, access: Access) -> Result<Bulk, Error> {
        let request = OpenVolume {
            read_only: access == Access::Read,
            ..OpenVolume::default()
        };
        self.open_as(name, &request)
    }

    /// As [`Client::open`], with the options in `request`.
    ///
    /// # Errors
    /// As for [`Client::open`]; [`ErrorCode::Stale`] if the reservation no longer exists, so that others may have opened the volume.
    pub fn open_as(&self, name: &Name, request: &OpenVolume) -> Result<Bulk, Error> {
        let path = format!("/v1/volumes/{}/open", path_segment(name.as_str()));
        self.call(Method::Post, &path, request)
    }

    fn exchange(&self, method: Method, path: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
        let mut stream = UnixStream::connect(self.layout.api_socket())
            .map_err(|error| self.not_running(&error))?;
        let head = format!(
            "{} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            method.name(),
            body.len()
        );
        let lost = |error: std::io::Error| {
            Error::new(
                ErrorCode::Unavailable,
                format!("the connection to the node daemon was lost before the reply: {error}"),
            )
            .with_hint(format!(
                "check the log {} and `{} node status`",
                self.layout.log().display(),
                self.layout.command()
            ))
        };
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .map_err(lost)?;
        // In one piece: if a server answers before it has read everything, it resets the connection.
        stream
            .write_all(&[head.as_bytes(), body].concat())
            .map_err(lost)?;
        let mut answer = Vec::new();
        (&mut stream)
            .take(ANSWER_LEN_MAX)
            .read_to_end(&mut answer)
            .map_err(lost)?;
        if answer.is_empty() {
            return Err(lost(ErrorKind::UnexpectedEof.into()));
        }
        Ok(answer)
    }

    fn not_running(&self, error: &std::io::Error) -> Error {
        let path = self.layout.api_socket();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => (self.explain)(&self.layout)
                .unwrap_or_else(|| {
                    Error::new(
                        ErrorCode::Unavailable,
                        format!("no node daemon serves {}", path.display()),
                    )
                    .with_hint(format!("start it: {} node start", self.layout.command()))
                }),
            _ => Error {
                code: ErrorCode::Unavailable,
                ..path_error(&path, error)
            },
        }
    }
}

/// A name, encoded as a segment of a path.
#[must_use]
pub fn path_segment(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn foreign(what: &str) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("invalid reply from the node daemon: {what}"),
    )
    .with_hint("command and daemon may be of different versions: restart the daemon")
}

/// Status and body of an answer.
fn split(answer: &[u8]) -> Result<(u16, &[u8]), Error> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(|| foreign("no end of its head"))?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_binary| foreign("a binary head"))?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| foreign("no status line"))?;
    Ok((status, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_legal_character_of_a_name_survives_a_path() {
        assert_eq!(path_segment("vm-1.disk_0@a:b+c"), "vm-1.disk_0%40a%3Ab%2Bc");
    }

    #[test]
    fn an_answer_is_split_into_status_and_body() {
        assert_eq!(
            split(b"HTTP/1.1 404 Not Found\r\na: b\r\n\r\n{}").unwrap(),
            (404, b"{}".as_slice())
        );
        for bad in [
            b"".as_slice(),
            b"HTTP/1.1 200",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 x\r\n\r\n",
        ] {
            assert_eq!(split(bad).unwrap_err().code, ErrorCode::Internal);
        }
    }
}
