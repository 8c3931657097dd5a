//! A task that a test runs to its end, answering its object requests.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_protocol::object::{ObjectReply, ObjectRequest};

use crate::disk::Disk;
use crate::effect::Effect;
use crate::task::{Scheduler, Tasks};

/// The result of `task`, whose requests to `disk` are answered by `answer`.
pub(crate) fn run_task<T: 'static>(
    scheduler: &Scheduler,
    disk: &Disk,
    task: impl Future<Output = T> + 'static,
    mut answer: impl FnMut(&ObjectRequest) -> (ObjectReply, Vec<u8>),
) -> T {
    let end = Rc::new(RefCell::new(None));
    let result = Rc::clone(&end);
    scheduler.spawn(async move {
        let outcome = task.await;
        *result.borrow_mut() = Some(outcome);
    });
    let mut tasks = Tasks::default();
    tasks.run(scheduler);
    loop {
        let effect = disk.next_effect();
        let Some(Effect::Object { id, request, .. }) = effect else {
            break;
        };
        let (reply, data) = answer(&request);
        disk.done(id, reply, data);
        tasks.run(scheduler);
    }
    let end = end.borrow_mut().take();
    end.expect("it came to an end")
}
