//! Images that are at an address.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::harness::{Node, has_programs};
use crate::images::{checksum, disk, entries, has_qemu, name, qemu_img, write};

/// Serves `content` at `/disk`, and less than it promises at `/short`, until the test ends; the address.
fn serve(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let len = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..len]).into_owned();
            let (status, body) = match request.split(' ').nth(1) {
                Some("/disk") => ("200 OK", content.as_slice()),
                Some("/short") => ("200 OK", &content[..content.len() / 2]),
                Some("/moved") => ("302 Found\r\nLocation: /disk", b"".as_slice()),
                Some("/away") => ("302 Found\r\nLocation: file:///etc/passwd", b"".as_slice()),
                _ => ("404 Not Found", b"".as_slice()),
            };
            let promised = if body.is_empty() { 0 } else { content.len() };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {promised}\r\nConnection: close\r\n\r\n"
            );
            let _sent = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    format!("http://{address}")
}

#[test]
fn what_is_at_an_address_is_imported() {
    if !has_qemu() || !has_programs(&["curl"]) {
        return;
    }
    let node = Node::start("fused");
    std::fs::create_dir_all(node.path("tmp")).unwrap();
    let raw = write(&node, "raw", &disk());
    let image = node.path("image");
    qemu_img(&["convert", "-O", "qcow2", name(&raw), name(&image)]);
    let content = std::fs::read(&image).unwrap();
    let sum = checksum(&image);
    let server = serve(content);
    for (index, page) in ["disk", "moved"].into_iter().enumerate() {
        let (address, image) = (format!("{server}/{page}"), format!("i{index}"));
        let imported = node.json(&["image", "import", &address, &image, "--checksum", &sum]);
        assert_eq!(imported["format"], "qcow2");
        let copy = node.path("copy");
        node.done(&["image", "export", &image, name(&copy)]);
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&raw).unwrap());
    }
    let refused = |page: &str, code: i32, words: &str| {
        let address = format!("{server}/{page}");
        let said = node.refused(&["image", "import", &address, "refused"], code);
        assert!(said.contains(words), "{said}");
    };
    refused("absent", 3, "404");
    refused("short", 1, "/short");
    refused("away", 1, "rotocol");
    let said = node.refused(&["image", "import", &format!("{server}/disk"), "i0"], 4);
    assert!(said.contains("the name `i0` is taken"), "{said}");
    let said = node.refused(&["image", "import", "http://127.0.0.1:1/x", "refused"], 1);
    assert!(said.contains("http://127.0.0.1:1/x"), "{said}");
    assert_eq!(entries(&node), 2);
}
