//! A volume that a process keeps while the processes of the node die: nobody else gets it.

use anyhow::{Context, Result, ensure};
use archipelago_api::client::Client;
use archipelago_api::layout::Layout;
use archipelago_crash_tests::node::Node;
use archipelago_protocol::{Access, ErrorCode, Name};

/// Kills the data process and the daemon of `node`, and verifies after each death that every other way to the volume `name` is refused as
/// in use. The process that keeps the volume stands still meanwhile.
///
/// # Errors
/// The first way that is not refused.
pub fn is_excluded_over_deaths(node: &Node, name: &str) -> Result<()> {
    let client = Client::new(Layout::new(Some(node.root()))?);
    let name: Name = name.parse()?;
    let (client, name) = (&client, &name);
    for death in ["endpoint", "daemon"] {
        match death {
            "daemon" => {
                Node::kill(node.daemon()?)?;
                node.restart()?;
            }
            role => Node::kill(node.process_of(role)?)?,
        }
        let export = node.root().join("export");
        let export = export.to_str().context("UTF-8")?;
        let requests = [
            &["volume", "attach", name.as_str()][..],
            &["volume", "attach", name.as_str(), "--nbd", "--read-only"],
            &["volume", "remove", name.as_str()],
            &["volume", "resize", name.as_str(), "--force", "1M"],
            &["image", "export", name.as_str(), export],
        ];
        // Side by side, since the node waits a while for each.
        std::thread::scope(|scope| -> Result<()> {
            let opened = [Access::Read, Access::Write]
                .map(|access| scope.spawn(move || client.open(name, access)));
            let asked = requests.map(|request| scope.spawn(move || node.output(request)));
            for refused in asked {
                let refused = refused.join().ok().context("a panic")??;
                ensure!(refused.status.code() == Some(5), "{death}: {refused:?}");
            }
            for opened in opened {
                let opened = opened.join().ok().context("a panic")?.map(drop);
                let code = opened.map_err(|error| error.code);
                ensure!(code == Err(ErrorCode::InUse), "{death}: {code:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
