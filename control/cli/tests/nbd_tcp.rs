//! NBD on TCP, with and without TLS: `archipelago nbd serve` on a real node, the clients that people have, and hostile ones.

#[cfg(test)]
mod harness;
#[cfg(test)]
mod nbd_random;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose,
    };
    use serde_json::Value;

    use crate::harness::clients::{client, failing_client, has_clients, text};
    use crate::harness::content::{file, noise};
    use crate::harness::{Node, PLACEMENTS, ended, may_mount, run, wait};
    use crate::nbd_random::{self, Connection};

    const MIB: usize = 1 << 20;
    /// How long a server may take to end: nothing here takes it long.
    const END: Duration = Duration::from_secs(20);

    /// A server; killed at the end if it is still there.
    struct Server {
        child: Option<Child>,
        port: u16,
    }

    impl Server {
        fn start(node: &Node, arguments: &[&str]) -> Server {
            let programs = std::env::current_exe().unwrap();
            let programs = programs.ancestors().nth(2).unwrap();
            assert!(
                programs.join("archipelago-nbd-tcp").exists(),
                "there is no archipelago-nbd-tcp beside the tests: cargo build -p archipelago-nbd-tcp, with the same profile"
            );
            let mut command = node.command(&["nbd", "serve"]);
            command.args(arguments).stdin(Stdio::null());
            if !arguments.contains(&"--listen") {
                command.args(["--listen", "127.0.0.1:0"]);
            }
            let mut log = std::fs::File::options();
            log.create(true).append(true);
            let log = log.open(node.path("nbd.log")).unwrap();
            let child = command.stdout(Stdio::piped()).stderr(log).spawn();
            let mut server = Server {
                child: Some(child.unwrap()),
                port: 0,
            };
            let stdout = server.child.as_mut().unwrap().stdout.take().unwrap();
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            let port = line.trim().strip_prefix("listening on ");
            let port = port.and_then(|address| address.rsplit(':').next()?.parse().ok());
            server.port = port.unwrap_or_else(|| panic!("{line:?}: {}", log_of(node)));
            server
        }

        fn uri(&self, export: &str) -> String {
            format!("nbd://127.0.0.1:{}/{export}", self.port)
        }

        fn connect(&self) -> TcpStream {
            TcpStream::connect(("127.0.0.1", self.port)).unwrap()
        }

        fn pid(&self) -> Pid {
            let id = self.child.as_ref().unwrap().id();
            Pid::from_raw(i32::try_from(id).unwrap())
        }

        /// Ends it as an operator does.
        fn end(mut self) {
            kill(self.pid(), Signal::SIGTERM).unwrap();
            let output = ended(self.child.take().unwrap(), "nbd serve", END);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            if let Some(mut child) = self.child.take() {
                let _gone = child.kill();
                let _reaped = child.wait();
            }
        }
    }

    fn log_of(node: &Node) -> String {
        std::fs::read_to_string(node.path("nbd.log")).unwrap_or_default()
    }

    fn node_with(placement: &str, volumes: &[(&str, &str)]) -> Node {
        let node = Node::start(placement);
        for (name, size) in volumes {
            node.done(&["volume", "create", name, "--size", size]);
        }
        node
    }

    fn convert(source: &str, target: &str) {
        client(&[
            "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, target,
        ]);
    }

    fn compare(a: &str, b: &str) {
        client(&["qemu-img", "compare", "-f", "raw", "-F", "raw", a, b]);
    }

    /// Waits until nobody has `name` open any more: it can be exported.
    fn is_free(node: &Node, name: &str) {
        let target = node.path("free");
        wait("a volume that nobody has open", || {
            let exported = node.output(&["image", "export", name, target.to_str().unwrap()]);
            let _none = std::fs::remove_file(&target);
            exported.status.success()
        });
    }

    #[test]
    fn reference_clients_use_several_exports_of_one_port() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = node_with(placement, &[("v", "64M"), ("w", "64M"), ("x", "64M")]);
            let server = Server::start(&node, &["v", "w"]);
            let mut content = noise(1, 64 * MIB);
            content[8 * MIB..24 * MIB].fill(0);
            let source = file(&node, "source", &content);
            convert(&source, &server.uri("v"));
            compare(&source, &server.uri("v"));
            let copy = node.path("copy");
            client(&["nbdcopy", &server.uri("v"), copy.to_str().unwrap()]);
            assert!(std::fs::read(&copy).unwrap() == content, "{placement}");
            client(&["nbdcopy", "--flush", &server.uri("v"), &server.uri("w")]);
            compare(&source, &server.uri("w"));
            let info = client(&["qemu-img", "info", &server.uri("w")]);
            assert!(info.contains("64 MiB"), "{info}");

            let map = client(&["nbdinfo", "--map", "--json", &server.uri("w")]);
            let map: Value = serde_json::from_str(&map).unwrap();
            let types: Vec<_> = map
                .as_array()
                .unwrap()
                .iter()
                .map(|it| &it["type"])
                .collect();
            assert_eq!(types, [0, 3, 0], "{map}");
            assert_eq!(map[1]["length"], 16 << 20, "{map}");
            let map = client(&[
                "qemu-img",
                "map",
                "--output=json",
                "-f",
                "raw",
                &server.uri("w"),
            ]);
            let map: Value = serde_json::from_str(&map).unwrap();
            assert_eq!(map[1]["zero"], true, "{map}");

            let listed = client(&["nbdinfo", "--list", "--json", &server.uri("")]);
            let listed: Value = serde_json::from_str(&listed).unwrap();
            let exports = listed["exports"].as_array().unwrap().iter();
            let names: Vec<_> = exports.map(|export| &export["export-name"]).collect();
            assert_eq!(names, ["v", "w"], "{listed}");
            for unnamed in ["x", "", "nobody"] {
                let refused = failing_client(&["qemu-img", "info", &server.uri(unnamed)]);
                assert!(refused.contains("no export of this name"), "{refused}");
            }
            for arguments in [&["-w"][..], &["-w", "-d", "16", "-s", "64k"], &["-d", "32"]] {
                let mut bench = vec!["qemu-img", "bench", "-f", "raw", "-c", "2000"];
                bench.extend(arguments);
                let target = server.uri("w");
                bench.push(&target);
                client(&bench);
            }
            server.end();
            is_free(&node, "v");
        }
    }

    #[test]
    fn every_command_does_what_qemu_expects_and_a_resize_is_seen() {
        if !has_clients() {
            return;
        }
        let node = node_with("fused", &[("v", "256M")]);
        let server = Server::start(&node, &[]);
        let mut script = vec!["qemu-io", "-f", "raw", "-d", "unmap"];
        for command in [
            "write -P 7 1M 3M",
            "read -P 7 1M 3M",
            "write -f -P 9 512 512",
            "read -P 9 512 512",
            "read -P 0 0 512",
            "write -z -f 2M 1M",
            "read -P 0 2M 1M",
            "write -z -u 1M 512k",
            "read -P 0 1M 512k",
            "read -P 7 1536k 512k",
            "discard 3M 1M",
            "read -P 0 3M 1M",
            "write -P 5 100M 31M",
            "read -P 5 100M 31M",
            "flush",
        ] {
            script.extend(["-c", command]);
        }
        let uri = server.uri("v");
        script.push(&uri);
        let said = client(&script);
        assert!(
            !said.contains("failed") && !said.contains("error"),
            "{said}"
        );
        // What one connection has written is seen through another way in once nobody uses it any more.
        is_free(&node, "v");
        node.done(&["volume", "snapshot", "v", "s"]);
        let info = client(&["nbdinfo", "--json", &server.uri("s")]);
        let info: Value = serde_json::from_str(&info).unwrap();
        let export = &info["exports"][0];
        for (flag, expected) in [
            ("is_read_only", true),
            ("can_multi_conn", true),
            ("can_flush", true),
            ("can_trim", false),
            ("can_zero", false),
        ] {
            assert_eq!(export[flag], expected, "{flag}: {info}");
        }
        client(&[
            "qemu-io",
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 5 100M 31M",
            &server.uri("s"),
        ]);
        let refused =
            failing_client(&["qemu-io", "-f", "raw", "-c", "write 0 4k", &server.uri("s")]);
        assert!(
            refused.contains("denied") || refused.contains("read-only"),
            "{refused}"
        );
        node.done(&["volume", "resize", "v", "512M"]);
        let size = client(&["nbdinfo", "--size", &server.uri("v")]);
        assert_eq!(size.trim(), (512 << 20).to_string());
        client(&[
            "qemu-io",
            "-f",
            "raw",
            "-c",
            "write -P 3 511M 1M",
            &server.uri("v"),
        ]);

        let read_only = Server::start(&node, &["v", "--read-only"]);
        client(&[
            "qemu-io",
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 3 511M 1M",
            &read_only.uri(""),
        ]);
        let refused = failing_client(&[
            "qemu-io",
            "-f",
            "raw",
            "-c",
            "write 0 4k",
            &read_only.uri("v"),
        ]);
        assert!(
            refused.contains("denied") || refused.contains("read-only"),
            "{refused}"
        );
        read_only.end();
        server.end();
    }

    #[test]
    fn random_operations_over_three_connections_do_what_a_model_does() {
        for placement in PLACEMENTS {
            let node = node_with(placement, &[("v", "16M")]);
            let server = Server::start(&node, &["v"]);
            let connect = |structured| Connection::new(server.connect(), "v", structured);
            let mut connections = [connect(false), connect(true), connect(true)];
            let model = nbd_random::run(&mut connections, 16 << 20, 20_000);
            drop(connections);
            server.end();
            is_free(&node, "v");
            let exported = node.path("exported");
            node.done(&["image", "export", "v", exported.to_str().unwrap()]);
            assert!(std::fs::read(exported).unwrap() == model, "{placement}");
        }
    }

    /// Certificates: an authority, and one for each side, as QEMU and libnbd look for them in a directory.
    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Authority {
        fn new(name: &str) -> Authority {
            let mut params = params(&[], name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Authority {
                issuer: Issuer::new(params, key),
                pem,
            }
        }

        /// Certificate and key for `name`.
        fn signed(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
            let mut params = params(&[name.to_owned()], name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate.pem(), key.serialize_pem())
        }
    }

    fn params(names: &[String], name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(names).unwrap();
        let common = rcgen::DnType::CommonName;
        params.distinguished_name.push(common, name);
        params
    }

    /// A client's directory: the authority that it trusts, and its certificate if it has one.
    fn credentials(
        node: &Node,
        name: &str,
        trusted: &Authority,
        own: Option<&Authority>,
    ) -> PathBuf {
        let dir = node.path(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &trusted.pem).unwrap();
        if let Some(authority) = own {
            let (certificate, key) =
                authority.signed("client", ExtendedKeyUsagePurpose::ClientAuth);
            std::fs::write(dir.join("client-cert.pem"), certificate).unwrap();
            std::fs::write(dir.join("client-key.pem"), key).unwrap();
        }
        dir
    }

    /// The arguments of a tool of QEMU for an export with TLS.
    fn encrypted(tool: &str, command: &[&str], dir: &Path, port: u16) -> Vec<String> {
        let credentials = format!(
            "tls-creds-x509,id=tls,endpoint=client,dir={}",
            dir.display()
        );
        let image = format!(
            "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={port},file.export=v,file.tls-creds=tls"
        );
        let mut arguments = vec![tool.to_owned()];
        arguments.extend(command.iter().map(|it| (*it).to_owned()));
        arguments.extend([
            "--object".to_owned(),
            credentials,
            "--image-opts".to_owned(),
        ]);
        arguments.push(image);
        arguments
    }

    fn words(arguments: &[String]) -> Vec<&str> {
        arguments.iter().map(String::as_str).collect()
    }

    #[test]
    fn with_certificates_nothing_is_served_in_the_clear_or_to_strangers() {
        if !has_clients() {
            return;
        }
        let node = node_with("fused", &[("v", "64M")]);
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let (certificate, key) = ours.signed("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        let certificate = file(&node, "server-cert.pem", certificate.as_bytes());
        let key = file(&node, "server-key.pem", key.as_bytes());
        let authority = file(&node, "ca-cert.pem", ours.pem.as_bytes());
        let tls = ["--tls-certificate", &certificate, "--tls-key", &key];
        let server = Server::start(&node, &[&["v"][..], &tls].concat());
        let known = credentials(&node, "known", &ours, None);
        let member = credentials(&node, "member", &ours, Some(&ours));
        let foreign = credentials(&node, "foreign", &other, None);
        let stranger = credentials(&node, "stranger", &ours, Some(&other));

        let script = [
            "-c",
            "write -P 6 0 20M",
            "-c",
            "read -P 6 0 20M",
            "-c",
            "flush",
        ];
        client(&words(&encrypted("qemu-io", &script, &known, server.port)));
        let info = client(&words(&encrypted(
            "qemu-img",
            &["info"],
            &known,
            server.port,
        )));
        assert!(info.contains("64 MiB"), "{info}");
        let libnbd = format!(
            "nbds://127.0.0.1:{}/v?tls-certificates={}",
            server.port,
            known.display()
        );
        let copy = node.path("copy");
        client(&["nbdcopy", &libnbd, copy.to_str().unwrap()]);
        let copied = std::fs::read(&copy).unwrap();
        assert!(copied[..20 * MIB].iter().all(|byte| *byte == 6));

        let refused = failing_client(&["qemu-img", "info", &server.uri("v")]);
        assert!(refused.to_lowercase().contains("tls"), "{refused}");
        let refused = failing_client(&["nbdinfo", "--list", &server.uri("")]);
        assert!(refused.contains("not supported"), "{refused}");
        let refused = failing_client(&words(&encrypted(
            "qemu-img",
            &["info"],
            &foreign,
            server.port,
        )));
        assert!(refused.contains("certificate"), "{refused}");
        server.end();

        let members = [&["v"][..], &tls, &["--tls-client-ca", &authority]].concat();
        let server = Server::start(&node, &members);
        client(&words(&encrypted(
            "qemu-io",
            &["-c", "read -P 6 0 20M"],
            &member,
            server.port,
        )));
        for dir in [&known, &stranger] {
            failing_client(&words(&encrypted("qemu-img", &["info"], dir, server.port)));
        }
        // Those who failed have left nothing behind.
        client(&words(&encrypted(
            "qemu-io",
            &["-c", "write -P 7 0 1M"],
            &member,
            server.port,
        )));
        server.end();
        is_free(&node, "v");

        let bad = node.refused_as(
            &[
                "nbd",
                "serve",
                "v",
                "--listen",
                "127.0.0.1:0",
                "--tls-certificate",
                &key,
                "--tls-key",
                &key,
            ],
            2,
            "invalid",
        );
        assert!(bad.to_string().contains("server-key.pem"), "{bad}");
    }

    #[test]
    fn other_hosts_are_served_in_the_clear_only_if_the_operator_says_so() {
        let node = node_with("fused", &[("v", "64M")]);
        let anywhere = ["nbd", "serve", "v", "--listen", "0.0.0.0:0"];
        let refused = node.refused_as(&anywhere, 2, "invalid");
        assert!(
            refused["hint"].to_string().contains("--insecure"),
            "{refused}"
        );
        let server = Server::start(&node, &["v", "--listen", "0.0.0.0:0", "--insecure"]);
        server.end();
        let server = Server::start(&node, &["--listen", "127.0.0.1:0"]);
        let taken = format!("127.0.0.1:{}", server.port);
        node.refused_as(&["nbd", "serve", "--listen", &taken], 5, "in-use");
        server.end();
        node.refused_as(
            &["nbd", "serve", "none", "--listen", "127.0.0.1:0"],
            3,
            "not-found",
        );
        node.done(&["node", "stop"]);
        let refused = node.refused_as(
            &["nbd", "serve", "--listen", "127.0.0.1:0"],
            1,
            "unavailable",
        );
        assert!(
            refused["hint"].to_string().contains("node start"),
            "{refused}"
        );
    }

    #[test]
    fn a_volume_in_use_elsewhere_is_refused_with_words_and_is_free_behind_the_last_client() {
        if !has_clients() {
            return;
        }
        let node = node_with("fused", &[("v", "64M")]);
        let server = Server::start(&node, &[]);
        let socket = node.done(&["volume", "attach", "v", "--nbd"]);
        let elsewhere = format!("nbd+unix:///v?socket={}", socket.trim());
        let hold = |uri: &str| {
            let mut holder = Command::new("qemu-io");
            holder.args(["-f", "raw", uri]).stdin(Stdio::piped());
            holder.stdout(Stdio::null()).spawn().unwrap()
        };
        let holder = hold(&elsewhere);
        wait("a client", || {
            node.status().to_string().contains("\"connected\",1")
        });
        let refused =
            failing_client(&["qemu-io", "-f", "raw", "-c", "read 0 512", &server.uri("v")]);
        assert!(
            refused.contains("open") || refused.contains("use"),
            "{refused}"
        );
        node.refused_as(
            &["nbd", "serve", "v", "--listen", "127.0.0.1:0"],
            5,
            "in-use",
        );
        let mut holder = holder;
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
        wait("the end of it", || {
            node.output(&["volume", "detach", "v"]).status.success()
        });

        // A client that is killed leaves nothing behind, and so does the server.
        let mut holder = hold(&server.uri("v"));
        wait("a client", || log_of(&node).contains("uses `v`"));
        node.refused_as(&["volume", "remove", "v"], 5, "in-use");
        holder.kill().unwrap();
        holder.wait().unwrap();
        is_free(&node, "v");
        let mut holder = hold(&server.uri("v"));
        wait("a client", || {
            log_of(&node).matches("uses `v`").count() == 2
        });
        drop(server);
        is_free(&node, "v");
        let _gone = holder.kill();
        holder.wait().unwrap();
    }

    #[test]
    fn a_name_that_means_something_else_while_a_client_uses_it_is_opened_anew() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = node_with(placement, &[("v", "8M")]);
            let server = Server::start(&node, &["v"]);
            let mut first = negotiated(&server);
            node.done(&["volume", "rename", "v", "old"]);
            node.done(&["volume", "create", "v", "--size", "16M"]);
            let info = client(&["qemu-img", "info", &server.uri("v")]);
            assert!(info.contains("16 MiB"), "{info}");
            let write = ["qemu-io", "-f", "raw", "-c", "write -P 5 0 1M"];
            client(&[&write[..], &["-c", "flush", &server.uri("v")]].concat());
            first.write_all(&read_request(512)).unwrap();
            let mut answer = [5; 16 + 512];
            first.read_exact(&mut answer).unwrap();
            assert_eq!(answer[16..], [0; 512], "{placement}: it is of `old`");
            drop(first);
            server.end();
            is_free(&node, "old");
            is_free(&node, "v");
        }
    }

    #[test]
    fn clients_that_leave_writes_in_a_full_pool_do_not_keep_the_others_waiting() {
        if !has_clients() || !may_mount() {
            return;
        }
        let mut node = Node::new();
        let mount = node.mount_tmpfs("mount", "160m");
        node.done(&["init", "--pool-dir", mount.join("pool").to_str().unwrap()]);
        node.done(&["node", "start"]);
        for name in ["v", "w", "x"] {
            node.done(&["volume", "create", name, "--size", "256M"]);
        }
        let server = Server::start(&node, &[]);
        let mut reset = negotiated_for(&server, b"v");
        let mut finished = negotiated_for(&server, b"x");
        let _held = negotiated_for(&server, b"w");
        let ballast = File::create(mount.join("ballast")).unwrap();
        while (&ballast).write_all(&[1; 4096]).is_ok() {}
        for socket in [&mut reset, &mut finished] {
            socket.write_all(&read_request(512)).unwrap();
            assert_eq!(socket.peek(&mut [0; 1]).unwrap(), 1);
            // As many as the volume takes at a time: the server reads on, and sees the end.
            for offset in (0..4 * MIB).step_by(MIB) {
                socket.write_all(&write_request(offset, MIB)).unwrap();
            }
        }
        // With replies that nobody has read, a socket that is closed is reset.
        drop(reset);
        finished.shutdown(std::net::Shutdown::Write).unwrap();
        wait("a client that leaves", || {
            log_of(&node).contains("has left `v`")
        });
        client(&["qemu-img", "info", &server.uri("w")]);
        let refused = failing_client(&["qemu-img", "info", &server.uri("v")]);
        assert!(
            refused.contains("did not open the export in time"),
            "{refused}"
        );
        wait("the end of both", || {
            let log = log_of(&node);
            log.contains("closing `v`") && log.contains("which uses `x`, is cut off")
        });
        drop(finished);
        std::fs::remove_file(mount.join("ballast")).unwrap();
        for name in ["v", "x"] {
            is_free(&node, name);
            client(&["qemu-img", "info", &server.uri(name)]);
        }
    }

    #[test]
    fn a_signal_under_load_finishes_what_is_in_flight() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = node_with(placement, &[("v", "512M")]);
            let server = Server::start(&node, &["v"]);
            let mut load = Command::new("qemu-img");
            load.args([
                "bench",
                "-w",
                "-f",
                "raw",
                "-d",
                "32",
                "-c",
                "100000000",
                &server.uri("v"),
            ]);
            let mut load = load
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            wait("load", || {
                let figures = node.figures().into_iter();
                figures
                    .filter(|(name, _)| name.contains("write"))
                    .any(|(_, count)| count > 1000)
            });
            server.end();
            let _failed = load.wait().unwrap();
            let log = log_of(&node);
            assert!(!log.contains("ERROR") && !log.contains("cut off"), "{log}");
            is_free(&node, "v");
        }
    }

    #[test]
    fn clients_end_with_the_data_process_and_those_that_come_back_go_on() {
        if !has_clients() {
            return;
        }
        for placement in PLACEMENTS {
            let node = node_with(placement, &[("v", "256M")]);
            let server = Server::start(&node, &["v"]);
            let content = noise(7, 256 * MIB);
            let source = file(&node, "source", &content);
            let target = format!(
                r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"inet","host":"127.0.0.1","port":"{}"}},"export":"v","reconnect-delay":60}}}}"#,
                server.port
            );
            let mut copy = Command::new("qemu-img");
            // Slow enough for the kill to come in the midst of it.
            copy.args([
                "convert", "-n", "-f", "raw", "-O", "raw", "-r", "64M", &source, &target,
            ]);
            copy.stdout(Stdio::piped()).stderr(Stdio::piped());
            let copy = copy.spawn().unwrap();
            wait("a client", || log_of(&node).contains("uses `v`"));
            wait("progress", || written(&node) > 16);
            let status = node.status();
            let hosts = |process: &&Value| process["roles"].to_string().contains("endpoint");
            let mut processes = status["processes"].as_array().unwrap().iter();
            let pid = processes.find(hosts).unwrap()["pid"].as_i64().unwrap();
            assert!(pid > 1);
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
            let output = ended(copy, "qemu-img convert", crate::harness::clients::DEADLINE);
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert!(log_of(&node).contains("data process"), "{}", log_of(&node));
            compare(&source, &server.uri("v"));
            server.end();
        }
    }

    /// Writes that the peers of the node count.
    fn written(node: &Node) -> u64 {
        let figures = node.figures().into_iter();
        let writes = figures.filter(|(name, _)| name.ends_with(" writes"));
        writes.map(|(_, count)| count).sum()
    }

    /// A handshake that asks for `v`, without structured replies: what follows is the transmission.
    fn negotiated(server: &Server) -> TcpStream {
        negotiated_for(server, b"v")
    }

    /// As [`negotiated`], for an export whose name has one letter.
    fn negotiated_for(server: &Server, export: &[u8; 1]) -> TcpStream {
        let mut socket = server.connect();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"));
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(1_u32.to_be_bytes());
        hello.extend(export);
        socket.write_all(&hello).unwrap();
        let mut size_and_flags = [0; 10];
        socket.read_exact(&mut size_and_flags).unwrap();
        socket
    }

    fn write_request(offset: usize, len: usize) -> Vec<u8> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0, 0, 1]);
        request.extend([0; 8]);
        request.extend((offset as u64).to_be_bytes());
        request.extend(u32::try_from(len).unwrap().to_be_bytes());
        request.resize(request.len() + len, 7);
        request
    }

    fn read_request(len: u32) -> Vec<u8> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0; 4 + 8 + 8]);
        request.extend(len.to_be_bytes());
        request
    }

    /// Whether the server has ended the connection, within the time-out of the socket.
    fn is_ended(socket: &mut TcpStream) -> bool {
        let mut rest = [0; 64 << 10];
        loop {
            match socket.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }

    fn memory_of(server: &Server) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            << 10
    }

    #[test]
    fn hostile_clients_harm_nobody_else() {
        if !has_clients() {
            return;
        }
        let node = node_with("fused", &[("v", "256M")]);
        let source = file(&node, "source", &noise(3, 32 * MIB));
        let server = Server::start(&node, &["v"]);
        convert(&source, &server.uri("v"));

        // Garbage, in both phases, ends the connection at once.
        for garbage in [&[0xff; 4096][..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let mut socket = server.connect();
            socket.write_all(garbage).unwrap();
            assert!(is_ended(&mut socket));
            let mut socket = negotiated(&server);
            socket.write_all(&[garbage, garbage].concat()).unwrap();
            assert!(is_ended(&mut socket));
        }
        // A write that nobody could take, and one whose data does not come.
        let mut endless = read_request(u32::MAX);
        endless[7] = 1;
        let mut socket = negotiated(&server);
        socket.write_all(&endless).unwrap();
        assert!(is_ended(&mut socket));
        let mut half = read_request(1 << 20);
        half[7] = 1;
        half.extend([7; 1000]);
        let mut halves: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut socket = negotiated(&server);
                socket.write_all(&half).unwrap();
                socket
            })
            .collect();
        // Half a handshake, by more clients than may be in one, and clients that never read what they ask for.
        let mut idle: Vec<TcpStream> = (0..150).map(|_| server.connect()).collect();
        let mut stalled: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut socket = negotiated(&server);
                for _ in 0..64 {
                    socket.write_all(&read_request(32 << 20)).unwrap();
                }
                socket
            })
            .collect();
        for _ in 0..3 {
            let head = [
                "qemu-io",
                "-f",
                "raw",
                "-c",
                "read 0 32M",
                "-c",
                "write 64M 32M",
            ];
            client(&[&head[..], &["-c", "flush", &server.uri("v")]].concat());
        }
        let memory = memory_of(&server);
        assert!(memory < 400 * MIB, "{memory} bytes");
        for sockets in [&mut idle, &mut halves, &mut stalled] {
            for socket in sockets {
                socket
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .unwrap();
            }
        }
        assert!(idle.iter_mut().all(is_ended), "after 10 s");
        assert!(halves.iter_mut().all(is_ended), "after 30 s");
        wait("the end of those who do not read", || {
            log_of(&node).matches("took too long").count() >= halves.len() + stalled.len()
        });
        drop(stalled);
        compare_front(&node, &server, &source);
        let freed = memory_of(&server);
        assert!(freed < 150 * MIB, "{freed} bytes");
        server.end();
        is_free(&node, "v");
    }

    /// What was written first is still there.
    fn compare_front(node: &Node, server: &Server, source: &str) {
        let target = node.path("front");
        let mut dd = Command::new("qemu-img");
        dd.args(["dd", "-f", "raw", "-O", "raw", "bs=1M", "count=32"]);
        dd.arg(format!("if={}", server.uri("v")));
        dd.arg(format!("of={}", target.display()));
        let output = run(&mut dd);
        assert!(output.status.success(), "{output:?}");
        assert!(std::fs::read(target).unwrap() == std::fs::read(source).unwrap());
    }
}
