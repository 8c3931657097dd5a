//! A device without socket or threads, for fuzzing only: feature `fuzzing`, without any guarantee.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::command::{Answer, Command, Message};
use crate::config::AttachConfig;
use crate::device::DeviceSeed;
use crate::endpoint::eventfd;
use crate::shared::Shared;

/// The channel to a device without a front end.
#[derive(Debug)]
pub struct CommandSender(Sender<Message>);

impl CommandSender {
    /// Sends `command` to the device, which takes it at its next turn.
    #[must_use]
    pub fn send(&self, command: Command) -> Receiver<Answer> {
        let (reply, answer) = bounded(1);
        // A device that has ended answers nothing.
        let _ended = self.0.send(Message { command, reply });
        answer
    }
}

/// The seed of a device.
///
/// # Errors
/// The kernel's error, if there can be no eventfd.
pub fn seed(config: AttachConfig) -> std::io::Result<(CommandSender, DeviceSeed)> {
    let (sender, commands) = unbounded();
    let seed = DeviceSeed {
        shared: Arc::new(Shared::new(config.volume.size, eventfd()?)),
        commands,
        doorbell: OwnedFd::from(eventfd()?),
        config,
    };
    Ok((CommandSender(sender), seed))
}
