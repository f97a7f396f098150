//! What a tenant may do, and where it ends.

use crate::server::{BEYOND, MIB, Server};

#[test]
fn documents_are_kept_replaced_and_deleted() {
    let server = Server::with_tenants(&["a", "b"]);
    let path = "/tenants/a/documents/shelf/bread";
    assert_eq!(server.get(path).status, 404);
    assert_eq!(server.put(path, b"rye").status, 201);
    assert_eq!(server.get(path).body, b"rye");
    assert_eq!(server.put(path, b"wheat").status, 204);
    assert_eq!(server.get(path).body, b"wheat");
    assert_eq!(server.get("/tenants/b/documents/shelf/bread").status, 404);
    assert_eq!(server.json("/tenants/a")["documents"], 1);
    assert_eq!(server.delete(path).status, 204);
    assert_eq!(server.delete(path).status, 404);
    assert_eq!(server.get("/tenants/nobody/documents/x").status, 404);
}

#[test]
fn a_tenant_at_its_limit_gets_429_and_others_go_on() {
    let server = Server::with_tenants(&["a", "secret"]);
    let put = |tenant: &str, nth: u32| {
        server.put(&format!("/tenants/{tenant}/documents/{nth}"), &[7; 100_000])
    };
    let kept = (0..).take_while(|nth| put("a", *nth).status == 201).count() as u64;
    assert!((9..=10).contains(&kept), "{kept} documents of 100 000 bytes in 1 MiB");

    let refused = put("a", 99);
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "1"));
    assert!(refused.text().starts_with("cgroup /tenants/a refuses "), "{}", refused.text());
    assert!(!refused.text().contains("secret"));
    let current = server.current("tenants/a");
    assert!((kept * 100_000..=MIB).contains(&current), "{current} bytes for {kept} documents");

    // It can still read, and make room. Others do not notice.
    assert_eq!(server.get("/tenants/a/documents/0").body.len(), 100_000);
    assert_eq!(put("secret", 0).status, 201);
    assert_eq!(server.delete("/tenants/a/documents/0").status, 204);
    // Its connection may hold what was read for a moment.
    server.until("there is room", |_| put("a", 99).status == 201);
}

#[test]
fn what_no_wait_makes_possible_is_413() {
    let server = Server::with_tenants(&["a"]);
    let answer = server.put("/tenants/a/documents/x", &vec![0; 2 * MIB as usize]);
    assert_eq!(answer.status, 413);
    assert!(!answer.headers.contains_key("retry-after"));
}

#[test]
fn all_tenants_together_have_a_limit() {
    let server = Server::with(&["--max", "1M"]);
    for name in ["a", "b"] {
        assert_eq!(server.put(&format!("/tenants/{name}?max=64M"), b"").status, 201);
    }
    assert_eq!(server.put("/tenants/a/documents/x", &[0; 700_000]).status, 201);
    let answer = server.put("/tenants/b/documents/x", &[0; 700_000]);
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"));
    assert!(!answer.text().contains("/tenants/a"), "{}", answer.text());
}

#[test]
fn limits_are_set_again() {
    let server = Server::with_tenants(&["a"]);
    assert_eq!(server.put("/tenants/a?max=2M&high=1M", b"").status, 204);
    assert_eq!(server.get("/cgroups/tenants/a/memory.max").text(), "2097152\n");
    assert_eq!(server.get("/cgroups/tenants/a/memory.high").text(), "1048576\n");
    for query in ["", "?max=much", "?max=-1"] {
        assert_eq!(server.put(&format!("/tenants/b{query}"), b"").status, 400, "{query}");
    }
    let answer = server.put("/tenants/b?max=100", b"");
    assert_eq!(answer.status, 422, "its own counters do not fit: {}", answer.text());
    assert_eq!(server.get("/tenants/b").status, 404);
    assert_eq!(server.put("/tenants/b?max=1M", b"").status, 201);
}

#[test]
fn a_summary_tells_what_is_in_json() {
    let server = Server::with_tenants(&["a"]);
    let text = br#"{"name": "rye", "prices": [1, 2.5, -1], "is_sold": false, "note": null}"#;
    let answer = server.post("/tenants/a/summary", text);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let summary: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(summary["keys"], 4);
    assert_eq!((&summary["numbers"], &summary["sum"]), (&3.into(), &2.5.into()));
    assert_eq!((&summary["depth"], &summary["longest_string"]), (&3.into(), &3.into()));
    for text in ["", "{", "[1] 2", "[1, ]"] {
        assert_eq!(server.post("/tenants/a/summary", text.as_bytes()).status, 422, "{text}");
    }
}

#[test]
fn work_on_a_body_ends_at_the_limit_as_well() {
    let server = Server::with_tenants(&["a"]);
    let before = server.current("tenants/a");
    // 300 KB of text, and a tree of some 5 MB. In another thread, because it is long.
    let text = format!("[{}1]", "1,".repeat(150_000));
    let answer = server.post("/tenants/a/summary", text.as_bytes());
    assert!(matches!(answer.status, 413 | 429), "{} {}", answer.status, answer.text());
    assert!(answer.text().starts_with("cgroup /tenants/a refuses "), "{}", answer.text());
    let peak: u64 = server.get("/cgroups/tenants/a/memory.peak").text().trim().parse().unwrap();
    assert!(peak <= MIB + BEYOND, "{peak}");
    server.until("all of it is freed", |server| server.current("tenants/a") < before + 10_000);
    // A short one still is.
    assert_eq!(server.post("/tenants/a/summary", b"[1, 2]").status, 200);
}

#[test]
fn the_process_ends_when_it_is_asked_to() {
    let mut server = Server::with_tenants(&["a"]);
    assert_eq!(server.put("/tenants/a/documents/x", b"x").status, 201);
    let pid = server.child.id().to_string();
    assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
}
