//! The actions of the scripts, a function for each.
//!
//! | script | what it does | repeated, or for a volume that does not exist |
//! |---|---|---|
//! | create | file `create` | refused; what it began is undone if it fails. A volume stays if the script is killed or the node's answer is lost: `ownership` |
//! | attach | file `attach` | the same answer; refused |
//! | detach | ends all attachments of the volume | succeeds |
//! | remove | detaches the volume, then removes it | succeeds |
//! | grow | file `grow` | succeeds, if the volume has that size already; refused |
//! | setinfo | file `setinfo` | the same labels; refused |
//! | snapshot | file `snapshot` | refused |
//! | verify, open, close | file `checks` | they change nothing |

mod attach;
mod checks;
mod create;
mod grow;
mod node;
mod ownership;
mod setinfo;
mod snapshot;

use archipelago_protocol::Error;

use crate::call::Call;

pub use attach::Answer;
pub use node::Node;

/// Carries out `call`; only an attach has an answer.
///
/// # Errors
/// Why it failed, naming the volume, the cause and the next step.
pub fn run<'a>(call: &'a Call, node: &'a Node<'a>) -> Result<Option<Answer>, Error> {
    match call {
        Call::Create { volume, size, disk } => create::create(node, volume, *size, disk),
        Call::Attach { volume, access } => {
            return attach::attach(&node.volume(volume), *access).map(Some);
        }
        Call::Detach { volume } => node.volume(volume).detach_all(),
        Call::Remove { volume } => node.volume(volume).remove(),
        Call::Grow { volume, size } => grow::grow(&node.volume(volume), *size),
        Call::SetInfo { volume, owner } => setinfo::set_info(&node.volume(volume), owner),
        Call::Snapshot { volume, snapshot } => snapshot::snapshot(&node.volume(volume), snapshot),
        Call::Verify => checks::verify(node.client()),
        Call::Open { volume, sharing } => checks::open(&node.volume(volume), *sharing),
        Call::Close { volume } => checks::close(&node.volume(volume)),
    }?;
    Ok(None)
}
