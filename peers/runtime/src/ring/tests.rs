use std::io::Write as _;

use xseg::Region;

use super::*;

#[test]
fn a_request_that_the_kernel_gave_up_is_started_again_and_nobody_sees_it() {
    let mut ring = Ring::new(&Config::default()).unwrap();
    let (queue, region) = (Queue::default(), Region::anonymous(4096).unwrap());
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = File::from(OwnedFd::from(reader));
    let span = region.span(0, 512).unwrap();
    ring.transfer(&queue, 7, &reader, Direction::Read, &[span], 0);
    ring.submit();
    // As for want of a worker: ECANCELED, before there was anything to read.
    ring.cancel(0);
    for _ in 0..10 {
        ring.wait(Duration::from_millis(10));
    }
    assert!(ring.workerless.is_waiting(), "it was given up");
    assert!(queue.borrow().is_empty());
    writer.write_all(b"late").unwrap();
    for _ in 0..100 {
        ring.wait(Duration::from_millis(100));
        if let Some((event, _)) = queue.borrow_mut().pop_front() {
            assert_eq!((event.token, event.result), (7, 4));
            assert_eq!(ring.load.in_flight(), 0);
            return;
        }
    }
    panic!("the read was not started again in 10 s");
}

#[test]
fn first_commands_of_a_queue_wait_for_one_call() {
    let config = Config {
        submit_chunk: 2,
        ..Config::default()
    };
    let mut ring = Ring::new(&config).unwrap();
    let (queue, region) = (Queue::default(), Region::anonymous(4096).unwrap());
    let file = File::from(OwnedFd::from(std::io::pipe().unwrap().0));
    let span = region.span(0, 512).unwrap();
    for token in 0..128 {
        ring.first_command(&queue, token, &file, opcode::Nop::new().build(), &span);
    }
    assert_eq!(ring.uring.submission_len(), 128, "a call took some");
    assert!(ring.has_pending());
    ring.submit_pending();
    ring.wait(Duration::from_millis(100));
    assert_eq!(queue.borrow().len(), 128);
    // The others come by so many.
    for (pushed, left) in [(1, 1), (2, 0)] {
        ring.command(&queue, pushed, &file, opcode::Nop::new().build(), &span);
        assert_eq!(ring.uring.submission_len(), left);
    }
}

#[test]
fn kept_files_are_closed_when_an_idle_ring_has_ended() {
    for round in 0..20 {
        let mut ring = Ring::new(&Config::default()).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        ring.keep_file(OwnedFd::from(writer)).unwrap();
        drop(ring);
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&reader, flags).unwrap();
        // The end of the pipe; an error as long as somebody may still write.
        let read = std::io::Read::read(&mut reader, &mut [0]);
        assert_eq!(read.ok(), Some(0), "round {round}");
    }
}
