use std::cell::RefCell;
use std::sync::Arc;

use archipelago_doubles::MemoryChannel;
use archipelago_runtime::ManualClock;

use super::*;

const LIMIT: Duration = Duration::from_secs(300);
const TOO_LATE: Result<(), ErrorCode> = Err(ErrorCode::Unavailable);

/// Takes answers: the numbers of the requests, and what they were answered.
#[derive(Default)]
struct Client(RefCell<Vec<(u16, Result<(), ErrorCode>)>>);

impl Requester for Client {
    fn piece_done(
        &self,
        request: u16,
        _piece: u16,
        _range: Range,
        result: Result<(), ErrorCode>,
        _buffer: Option<Buffer>,
    ) {
        self.0.borrow_mut().push((request, result));
    }
}

/// Flights, their channel, and whom they answer.
struct Export {
    flights: Flights<Arc<ManualClock>>,
    channel: MemoryChannel,
    clock: Arc<ManualClock>,
    client: Rc<Client>,
}

impl Export {
    fn new() -> Export {
        let clock = Arc::<ManualClock>::default();
        Export {
            flights: Flights::new(Outage::new(LIMIT, clock.clone())),
            channel: MemoryChannel::new(true, usize::MAX),
            clock,
            client: Rc::default(),
        }
    }

    /// Zeros at the offset of that number.
    fn submit(&mut self, request: u16) {
        let flight = Flight {
            requester: Rc::<Client>::clone(&self.client),
            request,
            piece: 0,
            command: Command::WriteZeroes {
                unmap: false,
                durable: false,
            },
            range: Range {
                offset: u64::from(request),
                len: 512,
            },
        };
        if let Some(refused) = self.flights.submit(&mut self.channel, flight, &[]) {
            self.client.piece_done(
                refused.request,
                refused.piece,
                refused.range,
                TOO_LATE,
                None,
            );
        }
    }

    /// The channel gives back the first request in flight: with `result`, or lost with the channel.
    fn give_back(&mut self, result: Result<(), ErrorCode>) {
        let (token, _) = self.channel.sent.remove(0);
        let finished = Finished {
            token,
            result,
            buffer: None,
        };
        if let Some(done) = self.flights.finished(finished, &mut self.channel) {
            let Flight {
                request,
                piece,
                range,
                ..
            } = done.flight;
            self.client
                .piece_done(request, piece, range, done.result, None);
        }
    }

    /// The channel ends with all that is in flight.
    fn leave(&mut self) {
        self.channel.live = false;
        while !self.channel.sent.is_empty() {
            self.give_back(Err(ErrorCode::Unavailable));
        }
        self.channel.away = true;
        self.flights.channel_left();
    }

    fn come_back(&mut self) -> usize {
        (self.channel.live, self.channel.away) = (true, false);
        self.flights.channel_returned(&mut self.channel).1
    }

    fn sent(&self) -> Vec<u64> {
        self.channel.sent.iter().filter_map(|(_, at)| *at).collect()
    }

    fn answers(&self) -> Vec<(u16, Result<(), ErrorCode>)> {
        self.client.0.borrow().clone()
    }
}

#[test]
fn what_a_dead_channel_has_not_answered_is_sent_again_and_nothing_else_is() {
    let mut export = Export::new();
    for request in 0..4 {
        export.submit(request);
    }
    export.give_back(Ok(()));
    export.give_back(Err(ErrorCode::NoSpace));
    export.leave();
    assert_eq!(export.come_back(), 2);
    export.submit(4);
    assert_eq!(export.sent(), [2, 3, 4], "the unanswered ones come first");
    for _ in 0..3 {
        export.give_back(Ok(()));
    }
    let full = Err(ErrorCode::NoSpace);
    let expected = [
        (0, Ok(())),
        (1, full),
        (2, Ok(())),
        (3, Ok(())),
        (4, Ok(())),
    ];
    assert_eq!(export.answers(), expected);
    assert!(export.flights.is_empty());
}

#[test]
fn a_request_that_comes_while_the_channel_ends_waits_for_the_next_one() {
    let mut export = Export::new();
    // Nobody has noticed yet.
    export.channel.live = false;
    export.submit(7);
    export.leave();
    assert_eq!((export.answers(), export.come_back()), (vec![], 1));
    assert_eq!(export.sent(), [7]);
}

#[test]
fn an_unavailable_answer_of_a_live_channel_is_an_answer() {
    let mut export = Export::new();
    export.submit(0);
    export.give_back(Err(ErrorCode::Unavailable));
    assert_eq!(export.answers(), [(0, TOO_LATE)]);
}

#[test]
fn a_request_that_every_process_dies_of_fails_after_the_limit() {
    let mut export = Export::new();
    export.submit(0);
    let mut deaths = 0;
    loop {
        export.leave();
        export.clock.advance(Duration::from_secs(10));
        if export.flights.outage().is_over_limit() {
            break;
        }
        assert_eq!(export.come_back(), 1);
        // Others are answered meanwhile.
        export.submit(1);
        export.channel.sent.swap(0, 1);
        export.give_back(Ok(()));
        deaths += 1;
        assert!(deaths < 100, "it is sent without an end");
    }
    assert_eq!(deaths, 29);
    assert_eq!(export.flights.take_unanswered().count(), 1);
    // What comes later fails at once, until the channel is back.
    export.submit(2);
    assert_eq!(export.answers().last(), Some(&(2, TOO_LATE)));
    assert_eq!(export.come_back(), 0);
    export.submit(3);
    assert_eq!(export.sent(), [3]);
}
