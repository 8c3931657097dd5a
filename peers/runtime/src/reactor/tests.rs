use std::io::Write as _;
use std::sync::Mutex;

use xseg::Region;

use super::*;
use crate::{Durability, File, SystemClock};

fn reactor() -> Reactor {
    Reactor::new(Config::default(), Arc::new(SystemClock), Box::new(|_| {})).unwrap()
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
    let source = reactor.context().source();
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
    let mut reactor = Reactor::new(config, Arc::new(SystemClock), Box::new(|_| {})).unwrap();
    let source = reactor.context().source();
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
    let source = reactor.context().source();
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
fn timeouts_come_at_their_deadline() {
    let mut reactor = reactor();
    let source = reactor.context().source();
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

struct Bomb(u32);

impl Peer for Bomb {
    fn name(&self) -> &str {
        "bomb"
    }
    fn poll(&mut self) -> Progress {
        assert!(self.0 > 0, "no polls left");
        self.0 -= 1;
        Progress::Busy
    }
}

#[test]
fn a_panicking_peer_goes_and_the_others_stay() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let told = Arc::clone(&told);
        Box::new(move |panicked: &Panicked| told.lock().unwrap().push(panicked.clone()))
    };
    let mut reactor = Reactor::new(Config::default(), Arc::new(SystemClock), hook).unwrap();
    let bomb = reactor.context().add_peer(Box::new(Bomb(2)));
    let other = reactor.context().add_peer(Box::new(Bomb(10)));
    for _ in 0..4 {
        reactor.turn();
    }
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].peer, told[0].message.as_str()),
        (Some(bomb), "no polls left")
    );
    assert!(reactor.context().remove_peer(bomb).is_none());
    assert!(reactor.context().remove_peer(other).is_some());
}

#[test]
fn a_thread_answers_calls_while_asleep_and_stops() {
    let config = Config {
        sleep_max: Duration::from_secs(60),
        ..Config::default()
    };
    let (handle, thread) = Reactor::spawn(config, Arc::new(SystemClock), Box::new(|_| {})).unwrap();
    for turn in 0..100 {
        assert_eq!(handle.ask(move |_| turn), Ok(turn));
    }
    assert!(handle.ask(|_| panic!("a call")).is_err());
    assert_eq!(handle.ask(|_| 1), Ok(1));
    handle.stop();
    thread.join().unwrap();
    assert_eq!(handle.ask(|_| 1), Err(crate::Ended));
}
