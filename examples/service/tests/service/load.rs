//! The load generator against the service.

use std::process::Command;

use crate::server::Server;

#[test]
fn the_load_generator_counts_what_metrics_tell() {
    let server = Server::start();
    let address = server.address.to_string();
    let args = ["--address", &address, "--seconds", "8", "--rate", "500", "--connections", "20"];
    let load = Command::new(env!("CARGO_BIN_EXE_load")).args(args).output().unwrap();
    let text = String::from_utf8(load.stdout).unwrap();
    assert!(load.status.success(), "{text}\n{}", String::from_utf8_lossy(&load.stderr));
    assert!(text.contains("/metrics has exactly what was counted here"), "{text}");
    assert_eq!(server.json("/tenants"), serde_json::json!([]), "it removes its tenants");
}
