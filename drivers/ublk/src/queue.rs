//! The kernel's side of a queue, as the driver uses it.

use std::os::fd::OwnedFd;

use archipelago_endpoint::Wakeups;
use archipelago_runtime::ublk::abi::Descriptor;
use xseg::Span;

/// A command that has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// Whose it was.
    pub tag: u16,
    /// 0: there is a request. Negative: the device is stopped.
    pub result: i32,
}

/// A queue of the kernel. Never blocks; what comes back makes the event loop poll the driver.
pub trait KernelQueue {
    /// Asks for a request of `tag`, whose data goes through `buffer`.
    fn fetch(&mut self, tag: u16, buffer: &Span);

    /// Answers the request of `tag` (bytes, or a negative errno) and asks for the next one.
    fn commit_and_fetch(&mut self, tag: u16, result: i32, buffer: &Span);

    /// The next command that has come back.
    fn next_completed(&mut self) -> Option<Completed>;

    /// The request that has come for `tag`.
    fn descriptor(&self, tag: u16) -> Option<Descriptor>;
}

/// An event loop that serves queues of the kernel.
pub trait KernelQueues: Wakeups {
    /// Its queues.
    type Queue: KernelQueue;

    /// The queue behind `fd`, of so many requests at a time and so many bytes each at most.
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
