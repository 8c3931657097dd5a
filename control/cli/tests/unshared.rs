//! A guest whose memory is not shared, as its administrator sees it: a real daemon, and a front end that does what QEMU with
//! plain `-m` does (rings, and no memory).

#[cfg(test)]
mod harness;

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::{AsFd, AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use nix::sys::eventfd::EventFd;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use serde_json::Value;

    use crate::harness::{DEADLINE, Node, wait};

    /// Those of volumes: the disk that the tests are on may have some of its own.
    fn problems(node: &Node) -> Vec<Value> {
        let all = node.status()["problems"].as_array().unwrap().clone();
        let of_volume = |problem: &Value| !problem["volume"].is_null();
        all.into_iter().filter(of_volume).collect()
    }

    /// Sends a message of the vhost-user protocol that asks for an acknowledgement, if `acknowledged`, and takes that.
    fn send(
        stream: &mut UnixStream,
        request: u32,
        acknowledged: bool,
        body: &[u64],
        fd: Option<RawFd>,
    ) {
        let flags = if acknowledged { 9_u32 } else { 1 };
        let body: Vec<u8> = body.iter().flat_map(|word| word.to_le_bytes()).collect();
        let len = u32::try_from(body.len()).unwrap();
        let mut bytes: Vec<u8> = [request, flags, len]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.extend(body);
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            flags,
            None,
        );
        assert_eq!(sent.unwrap(), bytes.len());
        if acknowledged {
            let mut answer = [0; 20];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[12..], [0; 8], "request {request}");
        }
    }

    #[test]
    fn a_guest_whose_memory_is_not_shared_is_named_in_the_status_and_in_the_log() {
        let node = Node::start("fused");
        node.done(&["volume", "create", "v", "--size", "16M"]);
        let socket = node.done(&["volume", "attach", "v"]);
        let socket = PathBuf::from(socket.trim());
        assert!(problems(&node).is_empty());
        let mut front_end = UnixStream::connect(&socket).unwrap();
        front_end.set_read_timeout(Some(DEADLINE)).unwrap();
        let stream = &mut front_end;
        // SET_OWNER; GET_FEATURES; GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES (REPLY_ACK); SET_FEATURES.
        send(stream, 3, false, &[], None);
        for get in [1, 15] {
            send(stream, get, false, &[], None);
            stream.read_exact(&mut [0; 20]).unwrap();
        }
        send(stream, 16, false, &[1 << 3], None);
        send(stream, 2, true, &[1 << 32 | 1 << 30], None);
        let kick = EventFd::new().unwrap();
        let fd = kick.as_fd().as_raw_fd();
        let of_queue_0 = |value: u64| value << 32;
        let user = 0x7f00_0000_0000;
        // SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_KICK, SET_VRING_ENABLE.
        send(stream, 8, true, &[of_queue_0(16)], None);
        send(stream, 10, true, &[0], None);
        send(
            stream,
            9,
            true,
            &[0, user, user + 0x2000, user + 0x1000, 0],
            None,
        );
        send(stream, 12, true, &[0], Some(fd));
        send(stream, 18, true, &[of_queue_0(1)], None);

        wait("the problem", || !problems(&node).is_empty());
        let problem = &problems(&node)[0];
        assert_eq!(problem["volume"], "v");
        let text = "is the guest's memory shared (QEMU: a memory backend with share=on)?";
        assert!(
            problem["what"].as_str().unwrap().contains(text),
            "{problem}"
        );
        let status = node.done(&["node", "status"]);
        assert!(
            status.contains("GUEST NOT SERVED") && status.contains(text),
            "{status}"
        );
        let log = std::fs::read_to_string(node.root().join("run/archipelagod.log")).unwrap();
        assert_eq!(log.matches(text).count(), 1, "{log}");
        drop(front_end);
        wait("the end of the problem", || problems(&node).is_empty());
    }
}
