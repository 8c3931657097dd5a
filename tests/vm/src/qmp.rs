//! QEMU's monitor: one JSON object in a line each way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::deadline::{Deadline, MONITOR};

/// Events kept while an answer is awaited. A test causes a handful.
const EVENTS_MAX: usize = 1024;

/// A connection to the monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// If nobody listens, or it is no monitor.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.read(Deadline::after(MONITOR))?;
        greeting
            .get("QMP")
            .with_context(|| format!("no greeting: {greeting}"))?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// If QEMU refuses it or does not answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        let deadline = Deadline::after(MONITOR);
        loop {
            let message = self.read(deadline).with_context(|| command.to_owned())?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if message.get("error").is_some() {
                bail!("{command} {arguments}: {message}");
            }
            self.keep(message)?;
        }
    }

    /// Waits for an event and takes it.
    ///
    /// # Errors
    /// If it does not come.
    pub fn wait_event(&mut self, name: &str) -> Result<Value> {
        let deadline = Deadline::after(MONITOR);
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            let message = self
                .read(deadline)
                .with_context(|| format!("waiting for {name}"))?;
            self.keep(message)?;
        }
    }

    fn keep(&mut self, event: Value) -> Result<()> {
        if self.events.len() == EVENTS_MAX {
            bail!("{EVENTS_MAX} events that nobody waits for");
        }
        self.events.push(event);
        Ok(())
    }

    fn read(&mut self, deadline: Deadline) -> Result<Value> {
        let left = deadline.left().context("the monitor is silent")?;
        self.stream.get_ref().set_read_timeout(Some(left))?;
        let mut line = String::new();
        let count = self
            .stream
            .read_line(&mut line)
            .context("reading from the monitor")?;
        if count == 0 {
            bail!("QEMU is gone");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
