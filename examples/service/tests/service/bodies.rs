//! When bodies are charged.

use crate::server::{BEYOND, MIB, Server};

#[test]
fn a_declared_length_is_charged_before_the_body_is_read() {
    let server = Server::with_tenants(&["a"]);
    let mut connection = server.connect();
    connection.begin("PUT", "/tenants/a/documents/x", "content-length: 500000");
    server.until("it is charged", |server| server.current("tenants/a") >= 500_000);
    // Another one has no room.
    assert_eq!(server.put("/tenants/a/documents/y", &[0; 600_000]).status, 429);
    connection.write(&[1; 500_000]);
    assert_eq!(connection.answer().status, 201);
}

#[test]
fn a_client_that_goes_away_leaves_no_charge() {
    let server = Server::with_tenants(&["a"]);
    let mut connection = server.connect();
    connection.begin("PUT", "/tenants/a/documents/x", "content-length: 500000");
    connection.write(&[1; 100_000]);
    server.until("it is charged", |server| server.current("tenants/a") >= 500_000);
    drop(connection);
    server.until("it is uncharged", |server| server.current("tenants/a") < 50_000);
    assert_eq!(server.get("/tenants/a/documents/x").status, 404);
}

#[test]
fn a_body_in_chunks_is_charged_as_it_grows() {
    let server = Server::with_tenants(&["a"]);
    let mut connection = server.connect();
    connection.begin("PUT", "/tenants/a/documents/x", "transfer-encoding: chunked");
    for sent in (100_000..=400_000).step_by(100_000) {
        connection.write_chunk(&[1; 100_000]);
        server.until("it is charged", |server| server.current("tenants/a") >= sent);
        assert!(server.current("tenants/a") < 2 * sent + 50_000);
    }
    connection.write(b"0\r\n\r\n");
    assert_eq!(connection.answer().status, 201);
    let current = server.current("tenants/a");
    assert!((400_000..450_000).contains(&current), "no more than its length: {current}");
}

#[test]
fn a_body_in_chunks_is_refused_where_the_limit_is() {
    let server = Server::with_tenants(&["a"]);
    let mut connection = server.connect();
    connection.begin("PUT", "/tenants/a/documents/x", "transfer-encoding: chunked");
    for _ in 0..15 {
        connection.write_chunk(&[1; 100_000]);
    }
    connection.write(b"0\r\n\r\n");
    let answer = connection.answer();
    assert_eq!(answer.status, 429, "{}", answer.text());
    let peak: u64 = server.get("/cgroups/tenants/a/memory.peak").text().trim().parse().unwrap();
    assert!(peak <= MIB + BEYOND, "{peak}");
    server.until("it is uncharged", |server| server.current("tenants/a") < 50_000);

    // The rest of the body was read, and so the connection is still of use.
    connection.begin("GET", "/tenants/a/documents/x", "accept: */*");
    assert_eq!(connection.answer().status, 404);
}

#[test]
fn a_refused_body_does_not_break_its_connection() {
    let server = Server::with_tenants(&["a"]);
    assert_eq!(server.put("/tenants/a/documents/x", &[0; 900_000]).status, 201);
    let mut connection = server.connect();
    for _ in 0..3 {
        connection.begin("PUT", "/tenants/a/documents/y", "content-length: 500000");
        connection.write(&[0; 500_000]);
        assert_eq!(connection.answer().status, 429);
    }
}

#[test]
fn a_client_that_waits_for_a_go_ahead_sends_nothing_in_vain() {
    let server = Server::with_tenants(&["a"]);
    assert_eq!(server.put("/tenants/a/documents/x", &[0; 900_000]).status, 201);
    let mut connection = server.connect();
    let headers = "content-length: 500000\r\nexpect: 100-continue";
    connection.begin("PUT", "/tenants/a/documents/y", headers);
    assert_eq!(connection.answer().status, 429);
}
