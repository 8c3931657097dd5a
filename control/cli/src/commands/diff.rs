//! `volume diff`: ranges that differ, page by page from the daemon.

use archipelago_api::client::{Client, path_segment};
use archipelago_protocol::diff::{ChangedRange, DiffPage};
use archipelago_protocol::{Error, Name};
use serde::Serialize;

use crate::output::{Output, Table};

/// All of them.
#[derive(Debug, Serialize)]
struct Diff {
    ranges: Vec<ChangedRange>,
}

/// Prints what differs, as `path` of the API says.
pub(super) fn run(
    path: &str,
    from: Option<&Name>,
    client: &Client,
    output: Output,
) -> Result<(), Error> {
    let from = from.map_or_else(String::new, |from| {
        format!("&from={}", path_segment(from.as_str()))
    });
    let mut ranges = Vec::new();
    let mut start = Some(0);
    while let Some(at) = start {
        let page: DiffPage = client.get(&format!("{path}?start={at}{from}"))?;
        ranges.extend(page.ranges);
        start = page.next;
    }
    output.print(&Diff { ranges }, |diff| table(&diff.ranges))
}

fn table(ranges: &[ChangedRange]) -> String {
    let mut table = Table::new(&["OFFSET", "LENGTH", "NOW"]);
    for range in ranges {
        table.row([
            range.offset.to_string(),
            range.len.to_string(),
            if range.zero { "zeros" } else { "data" }.to_owned(),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}
