//! `qemu-nbd` for one image: a socket without a name, one connection, a checked exit status.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use archipelago_protocol::{Error, ErrorCode};

use super::interrupt::Interrupt;
use super::nbd::Connection;
use super::tool::{self, Permissions, Tool};

/// The package that has the programs.
const PACKAGE: &str = "qemu-utils";
const WITHOUT: &str = "raw images need no other program";

/// Path of a program of QEMU.
pub(super) fn find(name: &str) -> Result<PathBuf, Error> {
    tool::find(name, PACKAGE, WITHOUT)
}

/// An image that `qemu-nbd` has open.
#[derive(Debug)]
pub(super) struct Server {
    tool: Tool,
    /// How the program names the image, and how the user does.
    node: String,
    title: String,
}

impl Server {
    /// Has `qemu-nbd` open `node`, which messages name `title`.
    pub(super) fn start<'a>(
        node: &str,
        title: &str,
        permissions: Permissions<'_>,
        interrupt: &'a Interrupt,
    ) -> Result<(Server, Connection<'a>), Error> {
        let program = find("qemu-nbd")?;
        let mut arguments = vec!["--shared=1".to_owned()];
        if permissions.write.is_empty() {
            arguments.push("--read-only".to_owned());
        }
        arguments.push(node.to_owned());
        let (listener, stream) = connected()?;
        let permissions = Permissions {
            listen: Some(listener.into()),
            ..permissions
        };
        let mut server = Server {
            tool: Tool::start(&program, &arguments, permissions)?,
            node: node.to_owned(),
            title: title.to_owned(),
        };
        let mut connection = Connection::new(stream, interrupt);
        match connection.negotiate() {
            Ok(()) => Ok((server, connection)),
            Err(error) => Err(server.explain(error, &connection, interrupt)),
        }
    }

    /// Waits until the program ends, after a `Disconnect`; then all writes are in the file.
    pub(super) fn finish(mut self, interrupt: &Interrupt) -> Result<(), Error> {
        match self.tool.wait(interrupt)? {
            status if status.success() => Ok(()),
            status => {
                let error = self
                    .tool
                    .failure(ErrorCode::Io, &format!("ended ({status})"));
                Err(self.in_words(error))
            }
        }
    }

    /// The program's own error if it has ended; otherwise `error`, the one of its connection.
    pub(super) fn explain(
        &mut self,
        error: Error,
        connection: &Connection<'_>,
        interrupt: &Interrupt,
    ) -> Error {
        if !connection.is_lost() {
            return error;
        }
        match self.tool.wait(interrupt) {
            Ok(status) => {
                let why = self.tool.failure(error.code, &format!("ended ({status})"));
                self.in_words(why)
            }
            Err(interrupted) => interrupted,
        }
    }

    fn in_words(&self, error: Error) -> Error {
        in_words(error, &self.node, &self.title)
    }
}

/// The error of a program of QEMU, with the image named as the user names it.
pub(super) fn in_words(error: Error, node: &str, title: &str) -> Error {
    let text = error.message.as_str();
    let text = text.split_once(": ").map_or(text, |(program, rest)| {
        if program.starts_with("qemu-") && !program.contains(' ') {
            rest
        } else {
            text
        }
    });
    // `Failed to blk_new_open 'json:...': Image is not in qcow2 format`
    let why = text.split_once(node).map_or(text, |(_, why)| why);
    let why = why.trim_start_matches(['\'', '"', ':', ' ']);
    Error {
        message: format!("{title}: {why}"),
        ..error
    }
}

/// A listening socket, and a connection to it. Its directory is removed before another process could use the name.
fn connected() -> Result<(UnixListener, UnixStream), Error> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::Io, format!("a socket for qemu-nbd: {error}"))
            .with_hint("it is made in $TMPDIR for a moment")
    };
    let directory = tempfile::tempdir().map_err(failed)?;
    let path = directory.path().join("nbd");
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let stream = UnixStream::connect(&path).map_err(failed)?;
    Ok((listener, stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_program_name_the_image_as_people_do() {
        let said = |text: &str| {
            let error = Error::new(ErrorCode::Damaged, text);
            in_words(error, "json:{\"x\":1}", "disk.qcow2").message
        };
        assert_eq!(
            said("qemu-nbd: Failed to blk_new_open 'json:{\"x\":1}': Image is not in qcow2 format"),
            "disk.qcow2: Image is not in qcow2 format"
        );
        assert_eq!(
            said("qemu-nbd ended (signal: 9)"),
            "disk.qcow2: qemu-nbd ended (signal: 9)"
        );
    }
}
