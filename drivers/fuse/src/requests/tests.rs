use std::sync::{Arc, Mutex};

use archipelago_doubles::MemoryChannel;
use archipelago_runtime::ManualClock;

use super::*;

const LIMIT: Duration = Duration::from_secs(300);
const SIZE: u64 = 1 << 20;
const DONE: Result<(), ErrorCode> = Ok(());
const LOST: Result<(), ErrorCode> = Err(ErrorCode::Unavailable);

/// The name of a request, and what it was answered.
type Answer = (&'static str, Result<(), ErrorCode>);

/// Requests, their channel, and what was answered: a name for each request, in their order.
struct File {
    requests: Requests<Arc<ManualClock>>,
    channel: MemoryChannel,
    clock: Arc<ManualClock>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl File {
    /// Open, with room for `room` requests.
    fn new(kept: bool, room: usize) -> File {
        let clock = Arc::<ManualClock>::default();
        File {
            requests: Requests::new(Outage::new(LIMIT, clock.clone())),
            channel: MemoryChannel::new(kept, room),
            clock,
            answers: Arc::default(),
        }
    }

    /// Zeros at `offset`, or a flush; sent as far as there is room.
    fn begin(&mut self, name: &'static str, offset: Option<u64>) {
        let answers = Arc::clone(&self.answers);
        let reply = Box::new(move |result| answers.lock().unwrap().push((name, result)));
        let io = match offset {
            Some(offset) => Io::Zero {
                offset,
                len: 4096,
                keep_space: false,
                reply,
            },
            None => Io::Flush { reply },
        };
        assert!(self.requests.begin(io, SIZE).is_none(), "it does not wait");
        self.requests.send(&mut self.channel);
    }

    /// The channel has answered the first request in flight.
    fn finish(&mut self, result: Result<(), ErrorCode>) {
        let (token, _) = self.channel.sent.remove(0);
        let finished = Finished {
            token,
            result,
            buffer: None,
        };
        self.requests.finished(finished, &mut self.channel);
    }

    /// The process behind the channel dies: it gives back what was in flight.
    fn die(&mut self) {
        self.channel.live = false;
        while !self.channel.sent.is_empty() {
            self.finish(LOST);
        }
        match self.channel.kept {
            true => {
                self.channel.away = true;
                self.requests.channel_left();
            }
            false => self.requests.channel_ended(),
        }
    }

    /// The channel is open again, with room for `room`: how many requests are sent again.
    fn come_back(&mut self, room: usize, lost: bool) -> usize {
        (self.channel.live, self.channel.away, self.channel.room) = (true, false, room);
        let (_, count) = self.requests.channel_returned(lost);
        self.requests.send(&mut self.channel);
        count
    }

    fn sent(&self) -> Vec<Option<u64>> {
        self.channel.sent.iter().map(|(_, what)| *what).collect()
    }

    fn take_answers(&self) -> Vec<Answer> {
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

#[test]
fn what_a_channel_has_not_answered_is_sent_again_first_and_answered_once() {
    let mut file = File::new(true, 2);
    file.begin("a", Some(0));
    file.begin("b", Some(4096));
    file.begin("c", None);
    assert_eq!(file.sent(), [Some(0), Some(4096)], "there is no more room");
    file.finish(DONE);
    assert_eq!(file.take_answers(), [("a", DONE)]);
    file.die();
    file.begin("d", Some(8192));
    assert_eq!((file.sent(), file.take_answers()), (vec![], vec![]));
    // Room for one at a time: the order is kept all the same.
    assert_eq!(file.come_back(1, false), 1);
    assert_eq!(file.sent(), [Some(4096)]);
    file.finish(DONE);
    file.channel.room = 2;
    file.requests.send(&mut file.channel);
    assert_eq!(file.sent(), [None, Some(8192)]);
    file.finish(DONE);
    file.finish(Err(ErrorCode::NoSpace));
    let failed = Err(ErrorCode::NoSpace);
    assert_eq!(
        file.take_answers(),
        [("b", DONE), ("c", DONE), ("d", failed)]
    );
    assert!(file.requests.is_empty());
    assert_eq!(file.requests.next_failure(), Some(ErrorCode::NoSpace));
    assert_eq!(file.requests.next_failure(), None);
}

#[test]
fn a_request_that_outlives_two_channels_is_sent_a_third_time() {
    let mut file = File::new(true, 8);
    file.begin("a", Some(0));
    file.begin("b", Some(4096));
    for _ in 0..2 {
        file.die();
        assert_eq!(file.come_back(8, false), 2);
        assert_eq!(file.sent(), [Some(0), Some(4096)]);
    }
    file.finish(DONE);
    file.finish(DONE);
    assert_eq!(file.take_answers(), [("a", DONE), ("b", DONE)]);
    assert!(file.requests.is_empty());
}

#[test]
fn an_outage_goes_on_until_all_that_was_sent_again_is_answered() {
    let step = LIMIT / 3;
    let mut file = File::new(true, 8);
    file.begin("a", Some(0));
    file.begin("b", Some(4096));
    file.die();
    file.clock.advance(step);
    file.come_back(8, false);
    // What comes newly is no part of it, though it is answered first.
    file.begin("c", None);
    file.channel.sent.rotate_right(1);
    file.finish(DONE);
    file.finish(DONE);
    file.die();
    assert_eq!(file.requests.outage().left(), Some(LIMIT - step));
    file.come_back(8, false);
    file.finish(DONE);
    file.die();
    assert_eq!(file.requests.outage().left(), Some(LIMIT), "another outage");
    // Nothing was in flight: what has only begun waits no longer than that.
    file.begin("d", None);
    assert!(!file.requests.have_waited_too_long());
    file.clock.advance(LIMIT);
    assert!(file.requests.have_waited_too_long());
}

#[test]
fn after_the_limit_all_that_waits_fails_once_and_what_comes_back_later_is_new() {
    let mut file = File::new(true, 1);
    file.begin("in flight", Some(0));
    file.begin("not begun", Some(4096));
    file.die();
    file.clock.advance(LIMIT - Duration::from_millis(1));
    assert!(!file.requests.have_waited_too_long());
    file.clock.advance(Duration::from_millis(1));
    assert!(file.requests.have_waited_too_long());
    file.requests.fail_all();
    assert_eq!(
        file.take_answers(),
        [("in flight", LOST), ("not begun", LOST)]
    );
    assert!(file.requests.is_empty() && !file.requests.have_waited_too_long());
    assert_eq!(file.come_back(1, false), 0);
    assert_eq!(file.sent(), [], "nothing of before is sent");
    file.begin("new", None);
    file.finish(DONE);
    assert_eq!(file.take_answers(), [("new", DONE)]);
}

#[test]
fn a_request_of_which_some_pieces_were_answered_fails_as_a_whole() {
    let mut file = File::new(true, 1);
    // More than one request can ask for.
    let size = 3 << 30;
    let counted = Arc::clone(&file.answers);
    let io = Io::Zero {
        offset: 0,
        len: size,
        keep_space: false,
        reply: Box::new(move |result| counted.lock().unwrap().push(("long", result))),
    };
    assert!(file.requests.begin(io, size).is_none());
    file.requests.send(&mut file.channel);
    file.finish(DONE);
    file.channel.room = 1;
    file.requests.send(&mut file.channel);
    assert_eq!(file.sent(), [Some(1 << 30)]);
    file.die();
    file.clock.advance(LIMIT);
    file.requests.fail_all();
    assert_eq!(file.take_answers(), [("long", LOST)]);
    assert!(file.requests.is_empty());
}

#[test]
fn a_channel_that_is_not_kept_fails_what_was_under_way() {
    let mut file = File::new(false, 1);
    file.begin("in flight", Some(0));
    file.begin("not begun", None);
    file.die();
    assert_eq!(
        file.take_answers(),
        [("in flight", LOST), ("not begun", LOST)]
    );
    assert!(file.requests.is_empty());
    assert!(file.requests.outage().left().is_none());
}

#[test]
fn a_loss_fails_the_next_flush_and_that_one_alone() {
    let mut file = File::new(true, 8);
    file.begin("a", Some(0));
    file.die();
    file.come_back(8, true);
    file.finish(DONE);
    assert!(file.requests.has_unreported_loss());
    file.begin("b", None);
    file.begin("c", None);
    file.finish(DONE);
    file.finish(DONE);
    let lost = Err(ErrorCode::SyncFailed);
    assert_eq!(file.take_answers(), [("a", DONE), ("b", lost), ("c", DONE)]);
    assert!(!file.requests.has_unreported_loss());
}

#[test]
fn a_change_of_a_part_of_a_sector_is_alone_among_changes() {
    let changing = |count, exclusive| Changing { count, exclusive };
    for (before, whole, part) in [
        (changing(0, false), true, true),
        (changing(3, false), true, false),
        (changing(1, true), false, false),
    ] {
        assert_eq!(before.may_begin(false), whole, "{before:?}");
        assert_eq!(before.may_begin(true), part, "{before:?}");
    }
}
