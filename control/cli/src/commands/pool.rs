//! `pool list|info|add|take-over|remove`.

use std::path::PathBuf;

use archipelago_api::client::{Client, Method, path_segment};
use archipelago_api::config::{DEFAULT_CLIENT, RadosPool};
use archipelago_api::layout::path_error;
use archipelago_api::pools::{AddPool, PoolList, PoolStatus, PoolStored, PoolView};
use archipelago_api::types::Done;
use archipelago_protocol::Error;
use archipelago_protocol::control::PoolReserve;

use crate::options::{Pool, RadosOptions};
use crate::output::{Output, Table, facts};
use crate::size::human;

/// The kind of a pool without files: nothing of it is held by a lock or set aside.
const RADOS: &str = "rados";

pub(super) fn run(command: Pool, client: &Client, output: Output) -> Result<(), Error> {
    match command {
        Pool::List => {
            let list: PoolList = client.get("/v1/pools")?;
            output.print(&list, render)
        }
        Pool::Info { name } => {
            let pool: PoolView =
                client.get(&format!("/v1/pools/{}", path_segment(name.as_str())))?;
            output.print(&pool, info)
        }
        Pool::Add {
            name,
            dir,
            rados,
            opening,
        } => {
            let body = AddPool {
                name,
                directory: dir.map(absolute).transpose()?,
                rados: rados_pool(rados)?,
                take_over: opening.take_over,
            };
            let pool: PoolView = client.call(Method::Post, "/v1/pools", &body)?;
            output.print(&pool, |_quiet| String::new())
        }
        Pool::TakeOver { name } => {
            let path = format!("/v1/pools/{}/take-over", path_segment(name.as_str()));
            let pool: PoolView = client.call(Method::Post, &path, &())?;
            output.print(&pool, |_quiet| String::new())
        }
        Pool::Remove { name, unserved } => {
            let name = path_segment(name.as_str());
            let path = format!("/v1/pools/{name}?unserved={unserved}");
            let done: Done = client.call(Method::Delete, &path, &())?;
            output.print(&done, |_quiet| String::new())
        }
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(|error| path_error(&path, &error))
}

/// The RADOS pool that the options name, if they name one.
fn rados_pool(options: RadosOptions) -> Result<Option<RadosPool>, Error> {
    let Some(pool) = options.rados else {
        return Ok(None);
    };
    Ok(Some(RadosPool {
        pool,
        data_pool: options.data_pool,
        namespace: options.namespace.unwrap_or_default(),
        ceph_conf: options.ceph_conf.map(absolute).transpose()?,
        client: options.client.unwrap_or_else(|| DEFAULT_CLIENT.to_owned()),
        keyring: options.keyring.map(absolute).transpose()?,
        fsid: String::new(),
    }))
}

fn render(list: &PoolList) -> String {
    let mut table = Table::new(&[
        "NAME",
        "KIND",
        "FREE",
        "TOTAL",
        "USED",
        "LEVEL",
        "ENTRIES",
        "DIRECTORY",
    ]);
    for pool in &list.pools {
        let space = pool.status.space;
        let unknown = || "-".to_owned();
        table.row([
            pool.status.name.to_string(),
            pool.status.kind.clone(),
            space.map_or_else(unknown, |space| human(space.free)),
            space.map_or_else(unknown, |space| human(space.total)),
            space.map_or_else(unknown, |space| format!("{} %", space.used_percent)),
            space.map_or_else(unknown, |space| space.level.to_string()),
            pool.entries
                .map_or_else(unknown, |entries| entries.to_string()),
            pool.status.directory.display().to_string(),
        ]);
    }
    table.render()
}

/// What is known of a pool beside its name, kind and directory: a fact and its value each.
pub(super) fn told(pool: &PoolStatus) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(why) = &pool.unserved {
        rows.push(("not served", why.clone()));
    }
    let access = pool.access.as_ref();
    rows.push((
        "access",
        access.map_or_else(|| "not known".to_owned(), ToString::to_string),
    ));
    match pool.space {
        // Shown by `pool info`, if the cluster counts it.
        None if pool.kind == RADOS => {}
        None => rows.push((
            "free",
            "not known: the file system does not answer".to_owned(),
        )),
        Some(space) => {
            rows.push((
                "free",
                format!("{} ({} bytes)", human(space.free), space.free),
            ));
            rows.push((
                "total",
                format!("{} ({} bytes)", human(space.total), space.total),
            ));
            rows.push((
                "used",
                format!("{} %, level {}", space.used_percent, space.level),
            ));
            if let Some(inodes) = space.inodes {
                rows.push((
                    "inodes",
                    format!("{} free of {}", inodes.free, inodes.total),
                ));
            }
        }
    }
    if pool.kind == RADOS {
        rows.extend(pool.owner.iter().map(|owner| ("owner", owner.clone())));
        return rows;
    }
    if let Some(reserve) = pool.reserve {
        rows.push(("reserve", reserve_text(reserve)));
    }
    let lock = match &pool.lock {
        None => "held by nobody".to_owned(),
        Some(lock) => match (lock.pid, lock.ours) {
            (Some(pid), true) => format!("held by process {pid} of this node"),
            (Some(pid), false) => format!("held by process {pid}, which is not of this node"),
            (None, _) => "held by a process that has not said its number".to_owned(),
        },
    };
    rows.push(("lock", lock));
    rows.extend(pool.owner.iter().map(|owner| ("owner", owner.clone())));
    rows
}

fn reserve_text(reserve: PoolReserve) -> String {
    let PoolReserve { held, wanted } = reserve;
    match (held, wanted) {
        (_, 0) => "none: the file system cannot set room aside".to_owned(),
        _ if held < wanted => format!(
            "{} of {} are set aside for metadata",
            human(held),
            human(wanted)
        ),
        _ => format!("{} are set aside for metadata", human(held)),
    }
}

fn info(pool: &PoolView) -> String {
    let mut rows = vec![
        ("name", pool.status.name.to_string()),
        ("kind", pool.status.kind.clone()),
        ("directory", pool.status.directory.display().to_string()),
    ];
    rows.extend(told(&pool.status));
    rows.push((
        "entries",
        pool.entries
            .map_or_else(|| "not known".to_owned(), |entries| entries.to_string()),
    ));
    if let Some(provisioned) = pool.provisioned {
        let text = format!("{} ({provisioned} bytes)", human(provisioned));
        rows.push(("provisioned", text));
    }
    match pool.stored {
        Some(PoolStored { data, metadata }) => {
            let text = format!(
                "{} ({data} bytes) of data, {} of metadata",
                human(data),
                human(metadata)
            );
            rows.push(("stored", text));
        }
        None if pool.status.kind == RADOS => {}
        None => rows.push((
            "stored",
            "not known: its files cannot be counted, or not in time".to_owned(),
        )),
    }
    facts(&rows)
}
