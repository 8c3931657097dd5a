//! A handshake and requests, byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use crate::server::Server;

/// A handshake that asks for `v`, without structured replies: what follows is the transmission.
pub(crate) fn negotiated(server: &Server) -> TcpStream {
    negotiated_for(server, b"v")
}

/// As [`negotiated`], for an export whose name has one letter.
pub(crate) fn negotiated_for(server: &Server, export: &[u8; 1]) -> TcpStream {
    negotiated_over(server.connect(), export)
}

/// As [`negotiated_for`], over `socket`.
pub(crate) fn negotiated_over<S: Read + Write>(mut socket: S, export: &[u8; 1]) -> S {
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

/// A write of sevens.
pub(crate) fn write_request(offset: usize, len: usize) -> Vec<u8> {
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend([0, 0, 0, 1]);
    request.extend([0; 8]);
    request.extend((offset as u64).to_be_bytes());
    request.extend(u32::try_from(len).unwrap().to_be_bytes());
    request.resize(request.len() + len, 7);
    request
}

/// A read from 0 on.
pub(crate) fn read_request(len: u32) -> Vec<u8> {
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend([0; 4 + 8 + 8]);
    request.extend(len.to_be_bytes());
    request
}

/// Whether the server has ended the connection, within the time-out of the socket.
pub(crate) fn is_ended(socket: &mut impl Read) -> bool {
    let mut rest = [0; 64 << 10];
    loop {
        match socket.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}
