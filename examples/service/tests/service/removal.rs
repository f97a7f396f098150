//! Tenants that leave.

use std::ops::RangeInclusive;
use std::thread;

use crate::server::Server;

/// What a tenant's heap may leave: buffers that connections use again.
const REMAINS: RangeInclusive<u64> = 0..=if cfg!(feature = "heap") { 16 << 10 } else { 0 };

#[test]
fn a_tenant_leaves_nothing() {
    let server = Server::with_tenants(&["a"]);
    for nth in 0..20 {
        assert_eq!(server.put(&format!("/tenants/a/documents/{nth}"), &[1; 10_000]).status, 201);
    }
    assert!(server.current("tenants") >= 200_000);
    let answer = server.delete("/tenants/a");
    assert_eq!(answer.status, 200);
    let farewell: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(farewell["requests_under_way"], 0);
    assert!(REMAINS.contains(&farewell["left"]["charged"].as_u64().unwrap()), "{farewell}");
    assert_eq!(farewell["left"]["percpu"], 0, "its counters and histograms were freed: {farewell}");
    let remains = server.current("tenants");
    assert!(REMAINS.contains(&remains), "{remains}");

    assert_eq!(server.delete("/tenants/a").status, 404);
    assert_eq!(server.get("/tenants/a").status, 404);
    assert_eq!(server.get("/cgroups/tenants/a/memory.current").status, 404);
    assert_eq!(server.put("/tenants/a?max=1M", b"").status, 201, "the name is free again");
    assert_eq!(server.get("/tenants/a/documents/0").status, 404);
}

#[test]
fn a_removal_waits_for_requests_under_way_and_admits_no_others() {
    let server = Server::with_tenants(&["a"]);
    let mut connection = server.connect();
    connection.begin("PUT", "/tenants/a/documents/x", "content-length: 1000");
    server.until("it is under way", |server| {
        server.json("/snapshot.json")["tenants"]["/tenants/a"]["requests_under_way"] == 1
    });
    thread::scope(|scope| {
        let removal = scope.spawn(|| server.delete("/tenants/a?wait=20"));
        server.until("no request is admitted", |server| {
            server.get("/tenants/a/documents/y").status == 410
        });
        assert_eq!(server.put("/tenants/a?max=2M", b"").status, 410);
        assert_eq!(server.delete("/tenants/a").status, 410);
        assert!(!removal.is_finished());
        connection.write(&[0; 1000]);
        assert_eq!(connection.answer().status, 201);
        let answer = removal.join().unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("\"requests_under_way\":0"), "{}", answer.text());
    });
    assert_eq!(server.get("/tenants/a").status, 404);
}

#[test]
fn a_removal_does_not_wait_for_ever() {
    let server = Server::with_tenants(&["a"]);
    let mut connection = server.connect();
    connection.begin("PUT", "/tenants/a/documents/x", "content-length: 100000");
    server.until("it is charged", |server| server.current("tenants/a") >= 100_000);
    let answer = server.delete("/tenants/a?wait=0");
    let farewell: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(farewell["requests_under_way"], 1);
    assert!(farewell["left"]["charged"].as_u64().unwrap() >= 100_000, "{farewell}");
    assert!(farewell["text"].as_str().unwrap().starts_with("/tenants/a left to /tenants: "));
    // The parent pays until the request ends.
    assert!(server.current("tenants") >= 100_000);
    drop(connection);
    server.until("all is uncharged", |server| REMAINS.contains(&server.current("tenants")));
}

#[test]
fn a_client_that_does_not_wait_for_a_removal_does_not_stop_it() {
    let server = Server::with_tenants(&["a"]);
    let mut upload = server.connect();
    upload.begin("PUT", "/tenants/a/documents/x", "content-length: 1000");
    server.until("it is charged", |server| server.current("tenants/a") >= 1000);
    let mut removal = server.connect();
    removal.begin("DELETE", "/tenants/a?wait=20", "accept: */*");
    server.until("it leaves", |server| server.get("/tenants/a/documents/y").status == 410);
    drop(removal);
    drop(upload);
    server.until("it has left", |server| server.get("/tenants/a/documents/y").status == 404);
}
