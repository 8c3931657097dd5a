//! Deaths of the processes of a node under a load that must not notice.

use anyhow::Result;
use archipelago_crash_tests::node::Node;

use crate::load::Load;

/// Kills each process of `node`, which has the placement `placement`, `rounds` times; `load` goes on after each death.
///
/// # Errors
/// If it does not.
pub fn kill_each(node: &Node, placement: &str, rounds: usize, load: &Load) -> Result<()> {
    let roles: &[&str] = match placement {
        "fused" => &["endpoint"],
        _ => &["endpoint", "mapper", "blocker"],
    };
    load.wait_for_progress()?;
    for role in roles {
        for _ in 0..rounds {
            Node::kill(node.process_of(role)?)?;
            load.wait_for_progress()?;
        }
    }
    for _ in 0..rounds {
        Node::kill(node.daemon()?)?;
        node.restart()?;
        load.wait_for_progress()?;
    }
    Ok(())
}
