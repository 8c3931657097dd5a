//! Random operations against the model of `tests/endpoints`.

use archipelago_endpoint_tests::fsx::{self, Plan};

use crate::connections::Connections;
use crate::harness::Node;
use crate::server::{Server, in_each_placement, is_free, node_with};

const SIZE: u64 = 16 << 20;

#[test]
fn random_operations_over_three_connections_do_what_a_model_does() {
    in_each_placement(&[("v", "16M")], &["v"], do_random_operations);
}

#[test]
fn random_operations_over_three_connections_to_a_unix_socket_do_what_a_model_does() {
    let node = node_with("fused", &[("v", "16M")]);
    let socket = node.path("exports");
    let server = Server::start(&node, &["v", "--socket", socket.to_str().unwrap()]);
    do_random_operations(&node, server);
}

fn do_random_operations(node: &Node, server: Server) {
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
}
