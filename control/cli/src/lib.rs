//! The `archipelago` command.
//!
//! * [`options`]: the command line, parsed into checked types.
//! * [`commands`]: what each command does: mostly one request to the node daemon.
//! * [`format`](mod@format), [`checksum`]: of disk images.
//! * [`output`]: tables for people, one JSON object for scripts, and errors for both.
//!
//! One design decision: the command holds no state and takes no lock; every change is a request to the daemon. The
//! exceptions are `init`, which must work before there is a daemon, `doctor`, which must work when none can start, and the
//! bytes of an image, which it copies itself over a segment channel. A mount is served by a program of its own, `archipelago-fuse`, which
//! runs on after the command has ended. `nbd serve` becomes the program `archipelago-nbd-tcp`.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 exists already, 5 in use, 6 no space, 7 damaged data, 8 unsupported format.
//!
//! This crate never opens a pool and links nothing of the data path: `doctor` has the program `archipelagod` open one.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod commands;
pub mod format;
pub mod options;
pub mod output;
mod size;
