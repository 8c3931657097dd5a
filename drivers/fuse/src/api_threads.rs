//! Threads that send requests to the node: a slow answer delays neither the kernel's other requests nor open files.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use archipelago_api::client::Client;

/// Requests under way at a time; more wait for their turn. The node answers one in less than a millisecond.
const THREADS: usize = 8;

type Question = Box<dyn FnOnce(&Client) + Send>;

/// The threads. They end when this is dropped and all requests are answered.
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

    /// The client that the threads use.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Has one of the threads run `question`.
    pub(crate) fn ask(&self, question: impl FnOnce(&Client) + Send + 'static) {
        // The threads end only after this is dropped.
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
