//! What is in use only for a moment is waited for: a guest or a copy that has just ended.

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Command, Output};

    use archipelago_node::bulk::BulkClient;
    use archipelago_node::client::{Client, Method};
    use archipelago_node::layout::Layout;
    use nix::poll::{PollTimeout, poll};
    use serde_json::{Value, json};

    /// How long what holds a volume stays: several tries of a command.
    const HELD_MS: u16 = 500;

    /// A node, stopped when the test ends.
    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        fn start() -> Node {
            let node = Node {
                dir: tempfile::tempdir().unwrap(),
            };
            node.done(&["init"]);
            node.done(&["node", "start"]);
            node
        }

        fn root(&self) -> &Path {
            self.dir.path()
        }

        fn client(&self) -> Client {
            Client::new(Layout::new(Some(self.root())).unwrap())
        }

        fn output(&self, arguments: &[&str]) -> Output {
            let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago"));
            command.args(arguments).env("ARCHIPELAGO_ROOT", self.root());
            command.output().unwrap()
        }

        fn done(&self, arguments: &[&str]) -> String {
            let output = self.output(arguments);
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        }

        /// Expects exit code 5; what was said to people.
        fn in_use(&self, arguments: &[&str]) -> String {
            let output = self.output(arguments);
            assert_eq!(output.status.code(), Some(5), "{arguments:?}: {output:?}");
            String::from_utf8(output.stderr).unwrap()
        }

        /// Has `arguments` done while `holder` lives for some time yet.
        fn done_beside<T: Send>(&self, holder: T, arguments: &[&str]) {
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    poll(&mut [], PollTimeout::from(HELD_MS)).unwrap();
                    drop(holder);
                });
                self.done(arguments);
            });
        }

        /// Begins a copy by `request`; what is returned holds the volume open.
        fn copy(&self, method: Method, path: &str, request: &Value) -> Copy {
            let begun: Value = self.client().call(method, path, request).unwrap();
            let socket = begun["socket"].as_str().unwrap();
            let (quiet, other) = UnixStream::pair().unwrap();
            // The copy keeps the descriptor that could interrupt it for as long as it is there.
            let quiet: &'static UnixStream = Box::leak(Box::new(quiet));
            let client = BulkClient::connect(Path::new(socket), None, quiet.as_fd()).unwrap();
            Copy {
                _client: client,
                _other: other,
            }
        }

        fn export(&self, name: &str) -> Copy {
            self.copy(
                Method::Post,
                &format!("/v1/volumes/{name}/export"),
                &Value::Null,
            )
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _stopped = self.output(&["node", "stop"]);
        }
    }

    struct Copy {
        _client: BulkClient<'static>,
        _other: UnixStream,
    }

    #[test]
    fn a_guest_that_has_just_ended_is_waited_for() {
        let node = Node::start();
        node.done(&["volume", "create", "v", "--size", "1G"]);
        for _ in 0..3 {
            let socket = node.done(&["volume", "attach", "v"]);
            let guest = UnixStream::connect(socket.trim()).unwrap();
            node.done_beside(guest, &["volume", "detach", "v"]);
        }
        let socket = node.done(&["volume", "attach", "v"]);
        let guest = UnixStream::connect(socket.trim()).unwrap();
        let said = node.in_use(&["volume", "detach", "v"]);
        assert!(
            said.contains("`v` is in use: a virtual machine is connected"),
            "{said}"
        );
        drop(guest);
        node.done(&["volume", "detach", "v"]);
    }

    #[test]
    fn a_copy_that_has_just_ended_is_waited_for() {
        let node = Node::start();
        node.done(&["volume", "create", "v", "--size", "1G"]);
        node.done_beside(node.export("v"), &["volume", "snapshot", "v", "s"]);
        node.done_beside(
            node.export("v"),
            &["volume", "resize", "v", "512M", "--force"],
        );
        let held = node.export("v");
        let said = node.in_use(&["volume", "snapshot", "v", "t"]);
        assert!(said.contains("an import or export of it goes on"), "{said}");
        node.done_beside(held, &["volume", "remove", "v"]);

        let begin = json!({ "name": "i", "size": 1 << 20 });
        let held = node.copy(Method::Post, "/v1/images", &begin);
        let source = node.root().join("source");
        std::fs::write(&source, [7; 4096]).unwrap();
        let source = source.to_str().unwrap();
        let said = node.in_use(&["image", "import", source, "i"]);
        assert!(
            said.contains("is being imported by another command"),
            "{said}"
        );
        node.done_beside(held, &["image", "import", source, "i"]);
    }
}
