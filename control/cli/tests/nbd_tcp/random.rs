//! Random operations against a model.

use crate::connections::{self, Connection};
use crate::server::{in_each_placement, is_free};

#[test]
fn random_operations_over_three_connections_do_what_a_model_does() {
    in_each_placement(&[("v", "16M")], &["v"], |node, server| {
        let connect = |structured| Connection::new(server.connect(), "v", structured);
        let mut connections = [connect(false), connect(true), connect(true)];
        let model = connections::run(&mut connections, 16 << 20, 20_000);
        drop(connections);
        server.end();
        is_free(node, "v");
        let exported = node.path("exported");
        node.done(&["image", "export", "v", exported.to_str().unwrap()]);
        assert!(std::fs::read(exported).unwrap() == model);
    });
}
