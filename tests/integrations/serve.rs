//! The server over its sockets: what it answers, and what clients cannot do to others.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::integrations::serve::{Server, ServerBuilder};
use percpu_memcg::report::History;
use percpu_memcg::{Limit, PerCpu, PerCpuAllocator};

use crate::{HOSTILE, tree};

/// A path that no other test has.
fn socket() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("memcg-serve-{}-{number}.sock", std::process::id()))
}

fn start(builder: ServerBuilder) -> (Server, PathBuf) {
    let path = socket();
    (builder.unix(&path).start().unwrap(), path)
}

/// The status, the head and the body.
type Answer = (u16, String, String);

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Answer {
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

fn get(path: &PathBuf, target: &str) -> (u16, String) {
    send(path, "GET", target, "")
}

fn send(path: &PathBuf, method: &str, target: &str, body: &str) -> (u16, String) {
    let request =
        format!("{method} {target} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (status, _, body) = exchange(UnixStream::connect(path).unwrap(), request.as_bytes());
    (status, body)
}

#[test]
fn figures_are_those_of_the_tree() {
    let (pcpu, tenant) = tree();
    tenant.set_max(Limit::bytes(1 << 20)).unwrap();
    let query = tenant.create(HOSTILE).unwrap();
    let _held = [query.charge(1000).unwrap().labelled("rows"), tenant.charge(24).unwrap()];
    let counter = PerCpu::<[u64; 100]>::zeroed_for(&query).unwrap();
    let history = Arc::new(History::of(&pcpu.root()));
    history.sample();
    let (_server, path) = start(Server::builder(&pcpu).history(&history));

    let snapshot = pcpu.root().snapshot();
    let text = |page: &str| {
        let (status, body) = get(&path, page);
        assert_eq!(status, 200, "{page}: {body}");
        body
    };
    let percpu = query.stat().percpu;
    assert_eq!(text("/cgroups/tenant/memory.current"), format!("{}\n", tenant.current()));
    assert_eq!(text("/cgroups/memory.stat"), pcpu.files().read("memory.stat").unwrap());
    assert_eq!(text("/tree"), format!("{:#}", snapshot.tree()));
    assert_eq!(text("/tree?bytes&depth=1"), snapshot.tree().depth(1).to_string());
    assert_eq!(text("/tree?cgroup=/tenant&bytes"), tenant.snapshot().tree().to_string());
    assert_eq!(text("/folded"), snapshot.folded().to_string());
    assert_eq!(text("/snapshot.json"), serde_json::to_string(&snapshot).unwrap());
    let one: serde_json::Value = serde_json::from_str(&text("/snapshot.json?depth=0")).unwrap();
    assert_eq!(one["cgroups"].as_array().unwrap().len(), 1);
    assert!(text("/metrics").ends_with("# EOF\n"));
    assert!(text("/history").contains("tenant"));
    let history: serde_json::Value = serde_json::from_str(&text("/history.json")).unwrap();
    assert_eq!(history["peak"]["cgroups"][1]["current"], 1024 + percpu + 64);
    let about: serde_json::Value = serde_json::from_str(&text("/about.json")).unwrap();
    assert_eq!(about["pid"], std::process::id());
    assert_eq!(about["possible_cpus"], 2);
    assert_eq!(about["stats"]["nr_cur_alloc"], pcpu.stats().nr_cur_alloc);
    assert!(text("/chunks.svg").contains("800 B"));
    assert!(text("/percpu_stats").starts_with("Percpu Memory Statistics\n"));
    assert!(text("/").contains("/tree "));
    drop(counter);

    for (page, expected) in [
        ("/nothing", 404),
        ("/tree/x", 404),
        ("/tree?depth=x", 400),
        ("/tree?cgroup=nobody", 404),
        ("/cgroups/nobody/memory.max", 404),
        ("/cgroups/tenant/memory.reclaim", 405),
        ("/cgroups/tenant/memory.max/x", 404),
        ("/cgroups/..%2f..%2fetc/passwd", 400),
        ("/../../etc/passwd", 404),
    ] {
        assert_eq!(get(&path, page).0, expected, "{page}");
    }
}

#[test]
fn a_head_has_no_body() {
    let (pcpu, _tenant) = tree();
    let (_server, path) = start(Server::builder(&pcpu));
    let stream = UnixStream::connect(&path).unwrap();
    let (status, head, body) = exchange(stream, b"HEAD /tree HTTP/1.1\r\n\r\n");
    let length = format!("Content-Length: {}\r\n", get(&path, "/tree").1.len());
    assert_eq!((status, &*body), (200, ""));
    assert!(head.contains(&length), "{head}");
}

#[test]
fn names_in_listings_lead_to_what_they_name() {
    let (pcpu, tenant) = tree();
    let _held = tenant.create(HOSTILE).unwrap().charge(77).unwrap();
    let (_server, path) = start(Server::builder(&pcpu));
    let mut found = 0;
    let mut next = vec!["/cgroups/".to_owned()];
    while let Some(directory) = next.pop() {
        let (status, listing) = get(&path, &directory);
        assert_eq!(status, 200);
        for name in listing.lines() {
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
            match name.ends_with('/') {
                true => next.push(format!("{directory}{name}")),
                false if name == "memory.current" => {
                    found +=
                        get(&path, &format!("{directory}{name}")).1.trim().parse::<u64>().unwrap();
                }
                false => {}
            }
        }
    }
    assert_eq!(found, tenant.current() + 77);
}

#[test]
fn writes_are_off_unless_allowed() {
    let (pcpu, tenant) = tree();
    let (_server, path) = start(Server::builder(&pcpu));
    assert_eq!(send(&path, "PUT", "/cgroups/tenant/memory.max", "64M").0, 403);
    assert_eq!(tenant.max(), Limit::MAX);

    let server = Server::builder(&pcpu).allow_writes(true).tcp("127.0.0.1:0");
    let (server, path) = start(server);
    assert_eq!(send(&path, "PUT", "/cgroups/tenant/memory.max", "64M"), (204, String::new()));
    assert_eq!(tenant.max(), Limit::bytes(64 << 20));
    assert_eq!(send(&path, "POST", "/cgroups/tenant/memory.max", "max\n").0, 204);
    assert_eq!(tenant.max(), Limit::MAX);
    let (status, why) = send(&path, "PUT", "/cgroups/tenant/memory.max", "lots");
    assert_eq!(status, 400);
    assert!(why.contains("lots"), "{why}");
    assert_eq!(send(&path, "PUT", "/cgroups/tenant/memory.current", "1").0, 405);
    assert_eq!(send(&path, "PUT", "/cgroups/tenant/cgroup.procs", "0").0, 403);
    assert_eq!(send(&path, "PUT", "/cgroups/tenant/cgroup.procs/", "0").0, 403);
    assert_eq!(send(&path, "PUT", "/tree", "").0, 405);
    assert_eq!(tenant.nr_threads(), 0, "the server's thread is in no cgroup");

    let tcp = || TcpStream::connect(server.tcp_address().unwrap()).unwrap();
    let put = b"PUT /cgroups/tenant/memory.max HTTP/1.1\r\nContent-Length: 1\r\n\r\n1";
    assert_eq!(exchange(tcp(), put).0, 403);
    assert_eq!(exchange(tcp(), b"GET /tree HTTP/1.1\r\n\r\n").0, 200);
    assert_eq!(tenant.max(), Limit::MAX);
}

#[test]
fn a_forked_child_that_drops_the_server_leaves_it_to_its_parent() {
    let (pcpu, _tenant) = tree();
    let (server, path) = start(Server::builder(&pcpu));
    let history = Arc::new(History::of(&pcpu.root()));
    let sampler = History::start(&history, Duration::from_secs(60)).unwrap();
    // SAFETY: the child drops values and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let drops = std::panic::AssertUnwindSafe(|| drop((server, sampler)));
        let is_well = std::panic::catch_unwind(drops).is_ok();
        // SAFETY: ends the child here, without the end of the test.
        unsafe { libc::_exit(i32::from(!is_well)) };
    }
    let mut status = 0;
    // SAFETY: the child is this process's, and the number is there.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(get(&path, "/tree").0, 200);
    drop((server, sampler));
    assert!(!path.exists());
}

#[test]
fn a_callback_that_a_write_calls_may_drop_the_server() {
    let (pcpu, tenant) = tree();
    let (server, path) = start(Server::builder(&pcpu).allow_writes(true));
    let server = Arc::new(Mutex::new(Some(server)));
    let (taken, dropped) = (Arc::clone(&server), Arc::new(AtomicBool::new(false)));
    let note = Arc::clone(&dropped);
    let _callback = tenant.on_kill(move |_| {
        drop(taken.lock().unwrap().take());
        note.store(true, Ordering::SeqCst);
    });
    let mut client = UnixStream::connect(&path).unwrap();
    let write = b"PUT /cgroups/tenant/cgroup.kill HTTP/1.1\r\nContent-Length: 1\r\n\r\n1";
    client.write_all(write).unwrap();
    let mut answer = Vec::new();
    // The answer may or may not come before the connection is closed.
    let _closed = client.read_to_end(&mut answer);
    assert!(dropped.load(Ordering::SeqCst), "it returned");
    while path.exists() {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_refused_has_no_body_for_head() {
    let (pcpu, _tenant) = tree();
    let (_server, path) = start(Server::builder(&pcpu));
    let ask = |request: &str| {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = ask("HEAD /a%00 HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = ask("PUT /tree HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
}

#[test]
fn the_file_of_the_socket_is_private_and_is_removed() {
    let (pcpu, _tenant) = tree();
    let (server, path) = start(Server::builder(&pcpu));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let taken = Server::builder(&pcpu).unix(&path).start().unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    drop(server);
    assert!(!path.exists());

    // Left behind by a process that was ended.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::builder(&pcpu).unix(&path).start().unwrap();
    assert_eq!(get(&path, "/tree").0, 200);
    // Another one took the path. It stays.
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    fs::remove_file(&path).unwrap();

    fs::write(&path, "not a socket").unwrap();
    assert!(Server::builder(&pcpu).unix(&path).start().is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "not a socket");
    fs::remove_file(&path).unwrap();
    assert!(Server::builder(&pcpu).start().is_err());
}

#[test]
fn clients_that_send_nothing_or_slowly_keep_nobody_out() {
    let (pcpu, _tenant) = tree();
    let (server, path) = start(Server::builder(&pcpu).tcp("127.0.0.1:0"));
    // More than there is room for, and none of them asks for anything.
    let idle: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(get(&path, "/tree").0, 200);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(idle);
    // One that is slow is sent away after a time, whether others come or not.
    let mut slow = TcpStream::connect(server.tcp_address().unwrap()).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        slow.write_all(b"G").unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(slow.read(&mut [0; 16]).unwrap_or(0), 0);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn a_client_that_does_not_read_keeps_nobody_waiting() {
    let (pcpu, tenant) = tree();
    for number in 0..3000 {
        tenant.create(&format!("{number:0100}")).unwrap();
    }
    let (_server, path) = start(Server::builder(&pcpu));
    let deaf: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"GET /snapshot.json HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    assert_eq!(get(&path, "/cgroups/tenant/memory.max"), (200, "max\n".into()));
    // What was asked for is there all the same.
    let mut answers = deaf.into_iter().map(|mut stream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.len()
    });
    let first = answers.next().unwrap();
    assert!(first > 1 << 20 && answers.all(|len| len == first));
}

#[test]
fn what_is_no_request_is_answered_and_harms_nobody() {
    let (pcpu, _tenant) = tree();
    let (server, path) = start(Server::builder(&pcpu).tcp("127.0.0.1:0"));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let mut seed = 1_u64;
    let noise: Vec<u8> = (0..3000)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .collect();
    for (request, expected) in [
        (long.as_bytes(), 431),
        (b"\0\0\0\r\n\r\n", 400),
        (b"DELETE /cgroups/tenant HTTP/1.1\r\n\r\n", 405),
        (&noise, 400),
    ] {
        for _ in 0..3 {
            let mut stream = TcpStream::connect(server.tcp_address().unwrap()).unwrap();
            // The server may have answered before all of it was sent.
            let _sent = stream.write_all(request);
            let _closed = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let head = format!("HTTP/1.1 {expected} ");
            assert!(answer.starts_with(head.as_bytes()), "{}", String::from_utf8_lossy(&answer));
        }
    }
    drop(UnixStream::connect(&path).unwrap());
    assert_eq!(get(&path, "/tree").0, 200);
}

#[test]
fn figures_are_read_while_threads_charge() {
    let (pcpu, tenant) = tree();
    let (_server, path) = start(Server::builder(&pcpu).allow_writes(true));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..2000 {
                    let query =
                        tenant.create_scoped(&format!("{:?}-{round}", thread::current().id()));
                    let _held = query.unwrap().charge(100).unwrap();
                    let _counter = PerCpu::<u64>::zeroed_for(&tenant).unwrap();
                }
            });
        }
        for page in
            ["/tree", "/metrics", "/snapshot.json", "/chunks.svg", "/folded", "/cgroups/tenant"]
        {
            for _ in 0..20 {
                assert_eq!(get(&path, page).0, 200, "{page}");
                assert_eq!(send(&path, "PUT", "/cgroups/tenant/memory.high", "1G").0, 204);
            }
        }
    });
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_server_ends_with_clients_connected() {
    let (pcpu, _tenant) = tree();
    let (server, path) = start(Server::builder(&pcpu));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET").unwrap();
    let started = Instant::now();
    drop(server);
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn curl_reads_and_writes() {
    let (pcpu, tenant) = tree();
    let (_server, path) = start(Server::builder(&pcpu).allow_writes(true));
    let curl = |args: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--max-time", "10", "--unix-socket"]).arg(&path);
        curl.args(args).output()
    };
    let Ok(answer) = curl(&["http://memcg/cgroups/tenant/memory.max"]) else {
        println!("skipped: there is no curl");
        return;
    };
    assert_eq!(String::from_utf8(answer.stdout).unwrap(), "max\n");
    let put = curl(&["-X", "PUT", "-d", "64M", "http://memcg/cgroups/tenant/memory.max"]).unwrap();
    assert!(put.status.success());
    assert_eq!(tenant.max(), Limit::bytes(64 << 20));
}

#[test]
fn many_allocators_have_many_servers() {
    let all: Vec<_> = (0..4).map(|_| PerCpuAllocator::new().unwrap()).collect();
    let servers: Vec<_> = all.iter().map(|pcpu| start(Server::builder(pcpu))).collect();
    for (nth, (pcpu, (_, path))) in all.iter().zip(&servers).enumerate() {
        let _held = pcpu.root().create("a").unwrap().charge(nth as u64).unwrap();
        assert_eq!(get(path, "/cgroups/a/memory.current").1, format!("{nth}\n"));
    }
}
