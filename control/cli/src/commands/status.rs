//! `node status` for people: problems first, then pools, processes, peers, channels, and what is attached.

use archipelago_api::types::{AttachmentView, Descriptors, NodeStatus, ProcessView};
use archipelago_protocol::EndpointSpec;

use super::pool::told;
use crate::output::Table;

/// Characters of a line of counters: with the columns before it some 110.
const COUNTERS_WIDTH: usize = 64;

/// The counters that are not zero, in lines of at most [`COUNTERS_WIDTH`].
fn wrap(counters: &[(String, u64)]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (name, value) in counters.iter().filter(|(_, value)| *value != 0) {
        let counter = format!("{name} {value}");
        match lines.last_mut() {
            // 3: the comma and the space before it, and the comma that may follow.
            Some(line) if line.len() + counter.len() + 3 <= COUNTERS_WIDTH => {
                line.push_str(", ");
                line.push_str(&counter);
            }
            Some(line) => {
                line.push(',');
                lines.push(counter);
            }
            None => lines.push(counter),
        }
    }
    lines
}

/// What a process hosts, and for which pool if there are several.
fn title(status: &NodeStatus, process: &ProcessView) -> String {
    let roles: Vec<&str> = process.roles.iter().map(|role| role.name()).collect();
    of_pool(status, process, &roles.join("+"))
}

/// `what` of `process`, with its pool if there are several.
fn of_pool(status: &NodeStatus, process: &ProcessView, what: &str) -> String {
    match &process.pool {
        Some(pool) if status.pools.len() > 1 => format!("{pool}: {what}"),
        Some(_) | None => what.to_owned(),
    }
}

/// File descriptors of each process, if they are known.
fn descriptors(status: &NodeStatus) -> String {
    let mut table = Table::new(&["PROCESS", "ROLES", "DESCRIPTORS", "ALLOWED"]);
    let daemon = (status.pid, "daemon".to_owned(), status.descriptors);
    let peers = status
        .processes
        .iter()
        .map(|process| (process.pid, title(status, process), process.descriptors));
    for (pid, roles, descriptors) in std::iter::once(daemon).chain(peers) {
        if let Some(Descriptors { used, allowed }) = descriptors {
            table.row([
                pid.to_string(),
                roles,
                used.to_string(),
                allowed.to_string(),
            ]);
        }
    }
    if table.is_empty() {
        return String::new();
    }
    table.render() + "\n"
}

/// The processes that do not serve, or have ended since the daemon started, and why.
fn ends(status: &NodeStatus) -> Table {
    let mut ends = Table::new(&["PROCESS", "RESTARTS", "ENDED SECONDS AGO", "REASON"]);
    for process in &status.processes {
        let end = process.last_end.as_ref();
        let Some(reason) = process.reason.as_ref().or(end.map(|end| &end.reason)) else {
            continue;
        };
        ends.row([
            title(status, process),
            process.restarts.to_string(),
            end.map_or_else(|| "-".to_owned(), |end| end.seconds.to_string()),
            reason.clone(),
        ]);
    }
    ends
}

/// Problems: of pools, and of the processes that serve guests.
fn problems(status: &NodeStatus) -> [Table; 2] {
    let mut pools = Table::new(&["POOL", "PROBLEM"]);
    let mut volumes = Table::new(&["VOLUME", "GUEST NOT SERVED"]);
    for problem in &status.problems {
        if let Some(pool) = &problem.pool {
            pools.row([pool.to_string(), problem.what.clone()]);
            continue;
        }
        let volume = problem.volume.as_ref().map_or("-", |name| name.as_str());
        volumes.row([volume.to_owned(), problem.what.clone()]);
    }
    [pools, volumes]
}

/// The pools: a line for each, and its details.
fn pools(status: &NodeStatus) -> String {
    if status.pools.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["POOL", "DIRECTORY", "STATE"]);
    for pool in &status.pools {
        let mut facts = told(pool)
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}"));
        table.row([
            pool.name.to_string(),
            pool.directory.display().to_string(),
            facts.next().unwrap_or_default(),
        ]);
        for fact in facts {
            table.row([String::new(), String::new(), fact]);
        }
    }
    table.render() + "\n"
}

pub(super) fn render(status: &NodeStatus) -> String {
    let mut text = format!(
        "archipelagod {}, process {}, placement {}\n\n",
        status.version, status.pid, status.placement
    );
    for table in problems(status) {
        if !table.is_empty() {
            text.push_str(&table.render());
            text.push('\n');
        }
    }
    text.push_str(&pools(status));
    text.push_str(&descriptors(status));
    let mut waits = Table::new(&["WAITS FOR STORAGE", "SECONDS", "VOLUME"]);
    for wait in &status.waits {
        let volume = wait.volume.as_ref().map_or("-", |name| name.as_str());
        waits.row([
            wait.what.clone(),
            wait.seconds.to_string(),
            volume.to_owned(),
        ]);
    }
    if !waits.is_empty() {
        text.push_str(&waits.render());
        text.push('\n');
    }
    let ends = ends(status);
    if !ends.is_empty() {
        text.push_str(&ends.render());
        text.push('\n');
    }
    let mut peers = Table::new(&["PEER", "PROCESS", "RESTARTS", "STATE", "COUNTERS"]);
    let mut channels = Table::new(&[
        "CHANNEL",
        "TRANSPORT",
        "REQUESTS",
        "IN FLIGHT",
        "CONNECTIONS",
    ]);
    for process in &status.processes {
        let pid = if process.pid == 0 {
            "-".to_owned()
        } else {
            process.pid.to_string()
        };
        let state = if process.serving {
            "serving"
        } else {
            "not serving"
        };
        if process.peers.is_empty() {
            peers.row([
                title(status, process),
                pid,
                process.restarts.to_string(),
                state.to_owned(),
                String::new(),
            ]);
            continue;
        }
        for peer in &process.peers {
            let mut lines = wrap(&peer.counters).into_iter();
            peers.row([
                of_pool(status, process, &peer.name),
                pid.clone(),
                process.restarts.to_string(),
                state.to_owned(),
                lines.next().unwrap_or_default(),
            ]);
            for line in lines {
                let blank = String::new;
                peers.row([blank(), blank(), blank(), blank(), line]);
            }
        }
        for channel in &process.channels {
            channels.row([
                of_pool(
                    status,
                    process,
                    &format!("{} -> {}", channel.client, channel.server),
                ),
                channel.transport.clone(),
                channel.requests.to_string(),
                channel.in_flight.to_string(),
                channel.incarnation.to_string(),
            ]);
        }
    }
    text.push_str(&peers.render());
    if !channels.is_empty() {
        text.push('\n');
        text.push_str(&channels.render());
    }
    let mut attachments = Table::new(&[
        "ATTACHED", "ID", "KIND", "MODE", "QUEUES", "JOURNAL", "PATH",
    ]);
    for AttachmentView { attachment, .. } in &status.attachments {
        let mode = if attachment.read_only {
            "read-only"
        } else {
            "read-write"
        };
        let journal = match status.journals.contains(&attachment.name) {
            true => "in use",
            false => "-",
        };
        attachments.row([
            attachment.name.to_string(),
            attachment.id.to_string(),
            attachment.endpoint.kind().to_owned(),
            mode.to_owned(),
            match &attachment.endpoint {
                EndpointSpec::VhostUser { queues, .. } => queues.to_string(),
                _ => "-".to_owned(),
            },
            journal.to_owned(),
            attachment.endpoint.path().display().to_string(),
        ]);
    }
    if !attachments.is_empty() {
        text.push('\n');
        text.push_str(&attachments.render());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_counters_wrap_and_lose_nothing() {
        let counters: Vec<(String, u64)> = (0..40)
            .map(|number| (format!("counter_{number}"), number * 1_000_003))
            .collect();
        let lines = wrap(&counters);
        assert!(
            lines.iter().all(|line| line.len() <= COUNTERS_WIDTH),
            "{lines:?}"
        );
        let joined = lines.join(" ");
        let expected: Vec<String> = counters[1..]
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        assert_eq!(joined, expected.join(", "));
        assert!(wrap(&counters[..1]).is_empty());
    }
}
