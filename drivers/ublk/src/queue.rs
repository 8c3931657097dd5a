//! The kernel's side of a queue, as the driver uses it.

use std::os::fd::OwnedFd;

use archipelago_endpoint::Wakeups;
use archipelago_runtime::ublk::abi::Descriptor;
use xseg::Span;

/// A command that the kernel has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// Its request's tag.
    pub tag: u16,
    /// 0: there is a request. Negative: the device is stopped.
    pub result: i32,
}

/// A queue of the kernel. Never blocks; a completed command makes the event loop poll the driver.
pub trait KernelQueue {
    /// Fetches a request for `tag`, whose data goes through `buffer`.
    fn fetch(&mut self, tag: u16, buffer: &Span);

    /// Answers the request of `tag` (bytes, or a negative errno) and fetches the next one.
    fn commit_and_fetch(&mut self, tag: u16, result: i32, buffer: &Span);

    /// The next completed command.
    fn next_completed(&mut self) -> Option<Completed>;

    /// The descriptor of the request for `tag`.
    fn descriptor(&self, tag: u16) -> Option<Descriptor>;
}

/// An event loop that can serve queues of the kernel.
pub trait KernelQueues: Wakeups {
    /// The type of its queues.
    type Queue: KernelQueue;

    /// The queue behind `fd`, with at most so many requests at a time, of at most so many bytes each.
    ///
    /// # Errors
    /// The kernel's error.
    fn kernel_queue(
        &mut self,
        fd: OwnedFd,
        depth: u16,
        buffer_len: u32,
    ) -> std::io::Result<Self::Queue>;
}
