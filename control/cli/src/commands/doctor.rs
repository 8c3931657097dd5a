//! The command `doctor`: has the daemon check a pool that it serves; opens a pool that nobody serves, and checks it itself.

use std::process::ExitCode;

use archipelago_api::client::{Client, path_segment};
use archipelago_api::config::Config;
use archipelago_api::layout::Layout;
use archipelago_api::pools::PoolView;
use archipelago_api::types::PoolCheck;
use archipelago_protocol::check::{Finding, FindingKind};
use archipelago_protocol::error::UNSUPPORTED_FORMAT_HINT;
use archipelago_protocol::{Error, ErrorCode, Name};

use super::program;
use crate::options::Doctor;
use crate::output::Output;

pub(super) fn run(
    options: &Doctor,
    layout: &Layout,
    client: &Client,
    output: Output,
) -> Result<ExitCode, Error> {
    let config = Config::read(layout.config())?;
    let pool = match &options.pool {
        Some(pool) => pool,
        None => config.default_pool()?,
    };
    let served = if options.repair {
        refused_online(layout, client, pool)
    } else {
        online(client, pool)
    };
    let check = match served {
        Err(error) if error.code == ErrorCode::Unavailable => {
            let checked = offline(layout, pool, options.repair);
            // Another process has the pool open: the daemon's answer is the better explanation.
            checked.map_err(|found| match found.code {
                ErrorCode::InUse => error,
                _ => found,
            })?
        }
        answer => answer?,
    };
    output.print(&check, |check| render(check, layout, options.repair))?;
    let fault = check.report.fault();
    Ok(fault.map_or(ExitCode::SUCCESS, |fault| ExitCode::from(fault.exit_code())))
}

fn online(client: &Client, pool: &Name) -> Result<PoolCheck, Error> {
    client.get(&format!("/v1/pools/{}/check", path_segment(pool.as_str())))
}

/// The answer to a repair while a daemon serves the pool: an error. [`ErrorCode::Unavailable`] if there is no daemon.
fn refused_online(layout: &Layout, client: &Client, pool: &Name) -> Result<PoolCheck, Error> {
    let _served: PoolView = client.get(&format!("/v1/pools/{}", path_segment(pool.as_str())))?;
    Err(Error::new(
        ErrorCode::InUse,
        format!("pool `{pool}` is being served: repairs are made offline"),
    )
    .with_hint(format!("{} node stop", layout.command())))
}

/// Checks a pool that nobody serves: the daemon's program does, for this one cannot open pools.
fn offline(layout: &Layout, pool: &Name, repair: bool) -> Result<PoolCheck, Error> {
    let mut arguments = vec!["check-pool", pool.as_str()];
    if repair {
        arguments.push("--repair");
    }
    Ok(PoolCheck {
        pool: pool.clone(),
        online: false,
        report: program::ask(layout, &arguments)?,
    })
}

fn render(check: &PoolCheck, layout: &Layout, repair: bool) -> String {
    let report = &check.report;
    let checked = report.checked;
    let how = if check.online {
        "while it is served"
    } else {
        "offline"
    };
    let mut lines = vec![format!(
        "pool {}, checked {how}: {} volumes, snapshots and images, {} heads, {} logs, {} map pages, \
         {} data objects; {} objects in all",
        check.pool,
        checked.entries,
        checked.heads,
        checked.logs,
        checked.pages,
        checked.data_objects,
        checked.objects
    )];
    lines.extend(report.findings.iter().map(line));
    if report.more > 0 {
        lines.push(format!("and {} findings more", report.more));
    }
    lines.extend(
        report
            .repaired
            .iter()
            .map(|what| format!("repaired: {what}")),
    );
    let leaks = report
        .findings
        .iter()
        .any(|finding| finding.kind == FindingKind::Leaked);
    lines.push(match report.fault() {
        None if leaks && !repair => format!(
            "clean; `{} doctor --repair` deletes the orphans; stop the node first",
            layout.command()
        ),
        None => "clean".to_owned(),
        Some(ErrorCode::UnsupportedFormat) => format!("unsupported: {UNSUPPORTED_FORMAT_HINT}"),
        Some(_) => {
            "damaged: nothing was changed; restore the objects named, or the pool, from a copy"
                .to_owned()
        }
    });
    lines.join("\n")
}

fn line(finding: &Finding) -> String {
    let kind = match finding.kind {
        FindingKind::Damaged => "damaged",
        FindingKind::Missing => "missing",
        FindingKind::Unsupported => "unsupported",
        FindingKind::Remnant | FindingKind::Leaked | FindingKind::Foreign => "note",
    };
    let needed = finding
        .needed_by
        .as_ref()
        .map_or(String::new(), |name| format!(" (needed by `{name}`)"));
    format!("{kind}: {}{needed}", finding.message)
}
