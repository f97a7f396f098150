//! Names that mean something elsewhere.

use crate::server::{Server, encoded};

#[test]
fn hostile_names_are_names() {
    let server = Server::start();
    for name in [
        "<script>alert(1)<\\script>",
        "a\"b\\c",
        "\u{202e}txt",
        "a\u{1b}[2J\r",
        "日本 %20+?&#",
        "a.b c",
    ] {
        let path = format!("/tenants/{}", encoded(name));
        assert_eq!(server.put(&format!("{path}?max=1M"), b"").status, 201, "{name:?}");
        assert_eq!(server.put(&format!("{path}/documents/{}", encoded(name)), b"x").status, 201);
        assert_eq!(server.get(&format!("{path}/documents/{}", encoded(name))).body, b"x");
        let current = server.current(&format!("tenants/{}", encoded(name)));
        assert!(current > 0);
        assert_eq!(server.json(&path)["name"], name);
    }
    assert_eq!(server.json("/tenants").as_array().unwrap().len(), 6);
    for name in server.json("/tenants").as_array().unwrap() {
        let path = format!("/tenants/{}", encoded(name.as_str().unwrap()));
        assert_eq!(server.delete(&path).status, 200, "{name}");
    }
}

#[test]
fn names_that_the_tree_cannot_have_are_refused() {
    let server = Server::start();
    for name in ["%2e", "%2e%2e", "a%2fb", "a%0ab", "memory.max", "cgroup.kill", &"x".repeat(256)] {
        let status = server.put(&format!("/tenants/{name}?max=1M"), b"").status;
        assert_eq!(status, 400, "{name}");
    }
    assert_eq!(server.json("/tenants"), serde_json::json!([]));
}
