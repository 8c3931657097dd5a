//! Certificates: who is served, and who is not.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::harness::Node;
use crate::harness::clients::{client, failing_client, has_clients};
use crate::harness::content::file;
use crate::server::{Server, is_free, node_with};

const MIB: usize = 1 << 20;

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
fn credentials(node: &Node, name: &str, trusted: &Authority, own: Option<&Authority>) -> PathBuf {
    let dir = node.path(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca-cert.pem"), &trusted.pem).unwrap();
    if let Some(authority) = own {
        let (certificate, key) = authority.signed("client", ExtendedKeyUsagePurpose::ClientAuth);
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
