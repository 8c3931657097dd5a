//! `pool list|info`.

use archipelago_node::api::types::{PoolList, PoolView};
use archipelago_node::client::{Client, path_segment};
use archipelago_protocol::Error;

use crate::options::Pool;
use crate::output::{Output, Table, facts};
use crate::size::human;

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
    }
}

fn render(list: &PoolList) -> String {
    let mut table = Table::new(&["NAME", "KIND", "FREE", "TOTAL", "ENTRIES", "DIRECTORY"]);
    for pool in &list.pools {
        table.row([
            pool.name.to_string(),
            pool.kind.clone(),
            human(pool.free),
            human(pool.total),
            pool.entries.to_string(),
            pool.directory.display().to_string(),
        ]);
    }
    table.render()
}

fn info(pool: &PoolView) -> String {
    facts(&[
        ("name", pool.name.to_string()),
        ("kind", pool.kind.clone()),
        ("directory", pool.directory.display().to_string()),
        (
            "free",
            format!("{} ({} bytes)", human(pool.free), pool.free),
        ),
        (
            "total",
            format!("{} ({} bytes)", human(pool.total), pool.total),
        ),
        ("entries", pool.entries.to_string()),
    ])
}
