//! A task on its way to the end, whose object requests a test answers.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_protocol::object::{ObjectReply, ObjectRequest};

use crate::disk::Disk;
use crate::effect::Effect;
use crate::task::{Scheduler, Tasks};

/// What `task` comes to if each of its requests to `disk` has such an answer.
pub(crate) fn driven<T: 'static>(
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
        let effect = disk.effects.borrow_mut().pop_front();
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
