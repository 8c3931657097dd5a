use std::io::Write as _;
use std::sync::Mutex;

use xseg::Region;

use super::*;
use crate::{Durability, File, SystemClock};

fn reactor() -> Reactor {
    Reactor::new(Config::default(), Arc::new(SystemClock)).unwrap()
}

fn until(reactor: &mut Reactor, source: &Source) -> crate::Event {
    for _ in 0..100 {
        reactor.turn();
        if let Some(event) = source.next() {
            return event;
        }
        reactor.sleep(Duration::from_millis(100));
    }
    panic!("no event in 10 s")
}

#[test]
fn what_is_written_is_read_in_one_and_in_many_pieces() {
    let mut reactor = reactor();
    let source = reactor.source();
    let file: File = tempfile::tempfile().unwrap().into();
    let region = Region::anonymous(65536).unwrap();
    region.write(0, &[7; 8192]).unwrap();
    source.write(
        &file,
        &[region.span(0, 8192).unwrap()],
        4096,
        Durability::Now,
        1,
    );
    assert_eq!(
        until(&mut reactor, &source),
        crate::Event {
            token: 1,
            result: 8192
        }
    );
    let spans = [
        region.span(40960, 4096).unwrap(),
        region.span(32768, 4096).unwrap(),
    ];
    source.read(&file, &spans, 0, 2);
    assert_eq!(until(&mut reactor, &source).outcome().unwrap(), 8192);
    let mut bytes = [1; 4096];
    region.read(32768, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
    source.sync(&file, 3);
    assert_eq!(source.in_flight(), 1);
    assert_eq!(until(&mut reactor, &source).result, 0);
    assert_eq!(source.in_flight(), 0);
}

#[test]
fn more_requests_than_the_ring_has_entries_all_complete() {
    let config = Config {
        entries: 4,
        ..Config::default()
    };
    let mut reactor = Reactor::new(config, Arc::new(SystemClock)).unwrap();
    let source = reactor.source();
    let file: File = tempfile::tempfile().unwrap().into();
    let region = Region::anonymous(4096).unwrap();
    for token in 0..500 {
        source.write(
            &file,
            &[region.span(0, 512).unwrap()],
            token * 512,
            Durability::Later,
            token,
        );
    }
    let mut seen = vec![false; 500];
    for _ in 0..500 {
        let event = until(&mut reactor, &source);
        assert_eq!(event.result, 512);
        assert!(!std::mem::replace(
            &mut seen[usize::try_from(event.token).unwrap()],
            true
        ));
    }
    assert_eq!(source.in_flight(), 0);
}

#[test]
fn watches_tell_each_edge_until_dropped() {
    let mut reactor = reactor();
    let source = reactor.source();
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let watch = source.poll_readable(&ours, 9).unwrap();
    for _ in 0..3 {
        theirs.write_all(b"x").unwrap();
        let event = until(&mut reactor, &source);
        assert_eq!(event.token, 9);
        assert!(event.result & i32::from(libc::POLLIN) != 0);
    }
    drop(watch);
    theirs.write_all(b"x").unwrap();
    for _ in 0..5 {
        reactor.turn();
        reactor.sleep(Duration::from_millis(1));
    }
    assert_eq!(source.next(), None);
}

#[test]
fn a_full_socket_is_announced_once_when_it_has_room_and_at_once_when_it_is_gone() {
    let mut reactor = reactor();
    let source = reactor.source();
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; 4096]).is_ok() {}
    let watch = source.poll_readable(&ours, 9).unwrap();
    source.poll_writable_once(&watch, 7);
    for _ in 0..5 {
        reactor.turn();
        reactor.sleep(Duration::from_millis(1));
    }
    assert_eq!(source.next(), None, "there is no room");
    let mut taken = vec![0; 1 << 20];
    let _some = std::io::Read::read(&mut theirs, &mut taken).unwrap();
    let event = until(&mut reactor, &source);
    assert_eq!(event.token, 7);
    assert!(event.result & i32::from(libc::POLLOUT) != 0);
    drop(theirs);
    assert_eq!(until(&mut reactor, &source).token, 9);
    source.poll_writable_once(&watch, 7);
    assert_eq!(until(&mut reactor, &source).token, 7);
}

#[test]
fn timeouts_come_at_their_deadline() {
    let mut reactor = reactor();
    let source = reactor.source();
    let deadline = SystemClock.now() + Duration::from_millis(5);
    source.timeout(deadline, 4);
    let event = until(&mut reactor, &source);
    assert_eq!(
        event,
        crate::Event {
            token: 4,
            result: -libc::ETIME
        }
    );
    assert!(SystemClock.now() >= deadline);
}

/// Counts its polls, and what was left for it.
struct Inbox {
    handle: Handle,
    left: std::sync::mpsc::Receiver<u32>,
    answers: std::sync::mpsc::Sender<u32>,
}

impl Peer for Inbox {
    fn name(&self) -> &str {
        "inbox"
    }

    fn poll(&mut self) -> Progress {
        match self.left.try_recv() {
            Ok(number) => {
                self.answers.send(number).unwrap();
                Progress::Busy
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => Progress::Idle,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                self.handle.stop();
                Progress::Idle
            }
        }
    }
}

#[test]
fn a_thread_that_sleeps_is_woken_for_what_is_left_for_it_and_stops() {
    let config = Config {
        sleep_max: Duration::from_secs(60),
        ..Config::default()
    };
    let (leave, left) = std::sync::mpsc::channel();
    let (answers, answered) = std::sync::mpsc::channel();
    let (sender, handle) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut reactor = Reactor::new(config, Arc::new(SystemClock)).unwrap();
        let handle = reactor.handle();
        sender.send(handle.clone()).unwrap();
        reactor.run(&mut Inbox {
            handle,
            left,
            answers,
        });
    });
    let handle = handle.recv().unwrap();
    for turn in 0..100 {
        leave.send(turn).unwrap();
        handle.wake();
        assert_eq!(answered.recv(), Ok(turn));
    }
    assert!(!handle.is_stopping());
    drop(leave);
    handle.wake();
    thread.join().unwrap();
    assert!(handle.is_stopping());
}

/// Has reads in the kernel that do not end, and advances the clock by a microsecond in each turn, until the reactor sleeps.
struct Waiting {
    source: Source,
    clock: Arc<crate::ManualClock>,
    handle: Handle,
    /// Reads to begin with, of so many bytes each, from a pipe whose other end is kept.
    reads: (u64, u64),
    pipe: Option<(File, std::io::PipeWriter)>,
    region: Region,
    turns: Arc<Mutex<u32>>,
}

impl Peer for Waiting {
    fn name(&self) -> &str {
        "waiting"
    }

    fn poll(&mut self) -> Progress {
        self.clock.advance(Duration::from_micros(1));
        *self.turns.lock().unwrap() += 1;
        let (count, bytes) = std::mem::take(&mut self.reads);
        for token in 0..count {
            let span = self.region.span(0, bytes).unwrap();
            self.source
                .read(&self.pipe.as_ref().unwrap().0, &[span], 0, token);
        }
        if count > 0 {
            Progress::Busy
        } else {
            Progress::Idle
        }
    }

    fn prepare_sleep(&mut self) -> bool {
        // The reads end with their pipe.
        self.pipe = None;
        self.handle.stop();
        false
    }
}

/// Turns of a reactor with a budget of 50 us before it first sleeps, when so many reads of so many bytes are in the kernel.
fn turns_before_sleep(count: u64, bytes: u64) -> u32 {
    let clock = Arc::new(crate::ManualClock::default());
    let config = Config {
        poll: Duration::from_micros(50),
        ..Config::default()
    };
    let mut reactor = Reactor::new(config, Arc::<crate::ManualClock>::clone(&clock)).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let reader: File = std::fs::File::from(std::os::fd::OwnedFd::from(reader)).into();
    let turns = Arc::new(Mutex::new(0));
    let mut waiting = Waiting {
        source: reactor.source(),
        clock,
        handle: reactor.handle(),
        reads: (count, bytes),
        pipe: Some((reader, writer)),
        region: Region::anonymous(1 << 20).unwrap(),
        turns: Arc::clone(&turns),
    };
    reactor.run(&mut waiting);
    *turns.lock().unwrap()
}

#[test]
fn few_and_small_requests_are_polled_for_and_others_slept_for() {
    assert!(turns_before_sleep(1, 4096) >= 50);
    assert!(turns_before_sleep(4, 65536) >= 50);
    assert_eq!(turns_before_sleep(5, 4096), 2);
    assert_eq!(turns_before_sleep(1, 1 << 20), 2);
}

/// Writes one piece after the other, and stops the reactor after the last.
struct Writer {
    source: Source,
    handle: Handle,
    file: File,
    region: Region,
    left: usize,
    in_flight: bool,
    sleeps: usize,
}

impl Peer for Writer {
    fn name(&self) -> &str {
        "writer"
    }

    fn poll(&mut self) -> Progress {
        if let Some(event) = self.source.next() {
            assert_eq!(event.result, 4096);
            self.in_flight = false;
            self.left -= 1;
        }
        if self.in_flight {
            return Progress::Idle;
        }
        if self.left == 0 {
            self.handle.stop();
            return Progress::Idle;
        }
        let spans = [self.region.span(0, 4096).unwrap()];
        self.source
            .write(&self.file, &spans, 0, Durability::Later, 1);
        self.in_flight = true;
        Progress::Busy
    }

    fn prepare_sleep(&mut self) -> bool {
        self.sleeps += 1;
        // Refused now and then: what was pushed is in the kernel all the same.
        !self.sleeps.is_multiple_of(3)
    }
}

#[test]
fn what_is_pushed_before_a_sleep_goes_to_the_kernel_with_or_without_it() {
    for poll in [Duration::ZERO, Duration::from_micros(50)] {
        let config = Config {
            poll,
            submit_chunk: 8,
            sleep_max: Duration::from_secs(60),
            ..Config::default()
        };
        let mut reactor = Reactor::new(config, Arc::new(SystemClock)).unwrap();
        let mut writer = Writer {
            source: reactor.source(),
            handle: reactor.handle(),
            file: tempfile::tempfile().unwrap().into(),
            region: Region::anonymous(4096).unwrap(),
            left: 100,
            in_flight: false,
            sleeps: 0,
        };
        // What is not submitted lets a sleep last for a minute.
        reactor.run(&mut writer);
    }
}
