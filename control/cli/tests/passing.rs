//! What is in use only for a moment is waited for: a guest or a copy that has just ended.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use archipelago_api::client::Method;
    use archipelago_segment::{VolumeClient, VolumeOptions};

    use nix::poll::{PollTimeout, poll};
    use serde_json::{Value, json};

    use crate::harness::Node;

    /// How long what holds a volume stays: several tries of a command.
    const HELD_MS: u16 = 500;

    /// What these tests ask of a node besides.
    struct Holding(Node);

    impl Holding {
        fn start() -> Holding {
            Holding(Node::start("fused"))
        }

        /// Has `arguments` done while `holder` lives for some time yet.
        fn done_beside<T: Send>(&self, holder: T, arguments: &[&str]) {
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    poll(&mut [], PollTimeout::from(HELD_MS)).unwrap();
                    drop(holder);
                });
                self.0.done(arguments);
            });
        }

        /// Begins a copy by `request`; what is returned holds the volume open.
        fn copy(&self, method: Method, path: &str, request: &Value) -> VolumeClient {
            let begun: Value = self.0.client().call(method, path, request).unwrap();
            let socket = begun["socket"].as_str().unwrap();
            VolumeClient::connect(Path::new(socket), None, VolumeOptions::default()).unwrap()
        }

        fn export(&self, name: &str) -> VolumeClient {
            self.copy(
                Method::Post,
                &format!("/v1/volumes/{name}/export"),
                &Value::Null,
            )
        }
    }

    #[test]
    fn a_guest_that_has_just_ended_is_waited_for() {
        let node = Holding::start();
        node.0.done(&["volume", "create", "v", "--size", "1G"]);
        for _ in 0..3 {
            let socket = node.0.done(&["volume", "attach", "v"]);
            let guest = UnixStream::connect(socket.trim()).unwrap();
            node.done_beside(guest, &["volume", "detach", "v"]);
        }
        let socket = node.0.done(&["volume", "attach", "v"]);
        let guest = UnixStream::connect(socket.trim()).unwrap();
        let said = node.0.refused(&["volume", "detach", "v"], 5);
        assert!(
            said.contains("`v` is in use: a virtual machine is connected"),
            "{said}"
        );
        drop(guest);
        node.0.done(&["volume", "detach", "v"]);
    }

    #[test]
    fn a_copy_that_has_just_ended_is_waited_for() {
        let node = Holding::start();
        node.0.done(&["volume", "create", "v", "--size", "1G"]);
        node.done_beside(node.export("v"), &["volume", "snapshot", "v", "s"]);
        node.done_beside(
            node.export("v"),
            &["volume", "resize", "v", "512M", "--force"],
        );
        let held = node.export("v");
        let said = node.0.refused(&["volume", "snapshot", "v", "t"], 5);
        assert!(said.contains("an import or export of it goes on"), "{said}");
        node.done_beside(held, &["volume", "remove", "v"]);

        let begin = json!({ "name": "i", "size": 1 << 20 });
        let held = node.copy(Method::Post, "/v1/images", &begin);
        let source = node.0.root().join("source");
        std::fs::write(&source, [7; 4096]).unwrap();
        let source = source.to_str().unwrap();
        let said = node.0.refused(&["image", "import", source, "i"], 5);
        assert!(
            said.contains("is being imported by another command"),
            "{said}"
        );
        node.done_beside(held, &["image", "import", source, "i"]);
    }
}
