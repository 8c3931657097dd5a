//! Threads that ask the node: an answer that takes long keeps neither the kernel's other requests waiting nor open files.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use archipelago_api::client::Client;

/// Questions under way at a time; more wait for their turn. The node answers one in less than a millisecond.
const THREADS: usize = 8;

type Question = Box<dyn FnOnce(&Client) + Send>;

/// The threads. They end when this is dropped and all that was asked is answered.
#[derive(Debug)]
pub(crate) struct ApiThreads {
    client: Client,
    questions: Sender<Question>,
}

impl ApiThreads {
    /// Starts them.
    ///
    /// # Errors
    /// The kernel's error, if a thread cannot start.
    pub(crate) fn start(client: Client) -> std::io::Result<ApiThreads> {
        let (questions, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let (client, queue) = (client.clone(), Arc::clone(&queue));
            let thread = std::thread::Builder::new().name("api".to_owned());
            thread.spawn(move || answer_all(&client, &queue))?;
        }
        Ok(ApiThreads { client, questions })
    }

    /// The client that they ask with.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Has `question` asked by one of them.
    pub(crate) fn ask(&self, question: impl FnOnce(&Client) + Send + 'static) {
        // They end after this only.
        let _sent = self.questions.send(Box::new(question));
    }
}

fn answer_all(client: &Client, queue: &Mutex<Receiver<Question>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(question) => question(client),
            Err(_ended) => return,
        }
    }
}
