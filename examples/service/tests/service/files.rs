//! Interface files.

use crate::server::Server;

#[test]
fn files_are_read_written_and_listed() {
    let server = Server::with_tenants(&["a"]);
    let top = server.json("/cgroups/");
    assert_eq!(top["cgroups"], serde_json::json!(["service", "tenants"]));
    assert_eq!(server.json("/cgroups/tenants")["cgroups"], serde_json::json!(["a"]));
    let tenant = server.json("/cgroups/tenants/a/");
    assert_eq!(
        (&tenant["path"], &tenant["cgroups"]),
        (&"/tenants/a".into(), &serde_json::json!([]))
    );
    assert!(tenant["files"].as_array().unwrap().contains(&"memory.max".into()));

    assert_eq!(server.get("/cgroups/tenants/a/memory.max").text(), "1048576\n");
    assert_eq!(server.put("/cgroups/tenants/a/memory.max", b"64K").status, 204);
    assert_eq!(server.get("/cgroups/tenants/a/memory.max").text(), "65536\n");
    assert_eq!(server.put("/tenants/a/documents/x", &[0; 80_000]).status, 413);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let server = Server::with_tenants(&["a"]);
    assert_eq!(server.get("/cgroups/nobody/memory.max").status, 404);
    assert_eq!(server.get("/cgroups/../../etc/passwd").status, 404);
    assert_eq!(server.get("/cgroups/tenants/a/memory.max/x").status, 404);
    assert_eq!(server.put("/cgroups/tenants/a/memory.max", b"much").status, 400);
    assert_eq!(server.put("/cgroups/tenants/a/memory.current", b"1").status, 405);
    for file in ["procs", "procs/", "procs//", "procs%2f", "threads/", "kill", "freeze"] {
        let path = format!("/cgroups/tenants/a/cgroup.{file}");
        assert_eq!(server.put(&path, b"0").status, 403, "{path}");
    }
    assert_eq!(server.put("/cgroups/tenants/a/cgroup.threads", b"0").status, 403);
}

#[test]
fn operators_have_an_address_of_their_own_if_wanted() {
    let mut server = Server::with(&["--operator", "127.0.0.1:0"]);
    for path in ["/metrics", "/snapshot.json", "/cgroups/", "/chunks.svg", "/", "/tenants"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.put("/tenants/a?max=1M", b"").status, 405);
    let of_tenants = server.address;
    server.address = server.next_address();
    assert_eq!(server.put("/tenants/a?max=1M", b"").status, 201);
    assert_eq!(server.get("/metrics").status, 200);
    assert_eq!(server.put("/tenants/a/documents/x", b"x").status, 404);
    server.address = of_tenants;
    assert_eq!(server.put("/tenants/a/documents/x", b"x").status, 201);
    assert_eq!(server.delete("/tenants/a").status, 405);
}
