//! Random operations against the model of `tests/endpoints`.

use archipelago_endpoint_tests::fsx::{self, Plan};

use crate::connections::Connections;
use crate::server::{in_each_placement, is_free};

const SIZE: u64 = 16 << 20;

#[test]
fn random_operations_over_three_connections_do_what_a_model_does() {
    in_each_placement(&[("v", "16M")], &["v"], |node, server| {
        let plan = Plan::from_environment();
        println!("{plan}");
        let mut connections = Connections::new(&server, "v", plan.seed);
        let model = fsx::run(&mut connections, SIZE, plan).unwrap();
        drop(connections);
        server.end();
        is_free(node, "v");
        let exported = node.path("exported");
        node.done(&["image", "export", "v", exported.to_str().unwrap()]);
        assert!(std::fs::read(exported).unwrap() == model);
    });
}
