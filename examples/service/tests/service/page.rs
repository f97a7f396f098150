//! The page, in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::server::{Server, encoded};

const HOSTILE: &str = "<img src=x onerror=alert(1)>";

#[test]
fn the_page_runs_no_code_but_its_own_file() {
    let server = Server::start();
    let page = server.get("/");
    assert!(
        page.headers["content-security-policy"]
            .starts_with("default-src 'none'; script-src 'self';")
    );
    let text = page.text();
    let is_handler = |rest: &str| {
        rest.split_once('=').is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase()))
    };
    assert!(!text.split(" on").skip(1).any(is_handler), "no handlers in the markup");
    assert!(!text.contains("<style") && !text.contains("style=") && !text.contains("http"));
    for path in ["/page.css", "/page.js"] {
        let file = server.get(path);
        assert_eq!(file.status, 200);
        assert!(!file.text().contains("https://") && !file.text().contains("innerHTML"), "{path}");
    }
}

#[test]
fn the_page_shows_the_tenant_at_its_limit() {
    let Some(chromium) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
    else {
        println!("skipped: there is no Chromium");
        return;
    };
    let server = Server::start();
    for name in ["bakery", "library", "greedy", &encoded(HOSTILE)] {
        assert_eq!(server.put(&format!("/tenants/{name}?max=8M"), b"").status, 201);
    }
    for nth in 0..10 {
        server.put(&format!("/tenants/bakery/documents/{nth}"), &[0; 300_000]);
        server.put(&format!("/tenants/library/documents/{nth}"), &[0; 30_000]);
    }
    assert_eq!(server.put("/tenants/library?max=8M&high=200K", b"").status, 204);
    // The tenant is refused as long as the browser runs.
    let is_done = AtomicBool::new(false);
    let (dom, shot) = thread::scope(|scope| {
        let _done = Done(&is_done);
        scope.spawn(|| {
            for nth in 0.. {
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                server.put(&format!("/tenants/greedy/documents/{nth}"), &[0; 200_000]);
                server.get("/tenants/bakery/documents/1");
                thread::sleep(Duration::from_millis(5));
            }
        });
        server.until("it is at its limit", |server| {
            let answers = &server.json("/snapshot.json")["tenants"]["/tenants/greedy"]["answers"];
            answers["429"].as_u64().unwrap_or(0) > 10
        });
        let url = format!("http://{}/", server.address);
        let dom = browse(chromium, &url, &["--dump-dom"]);
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png");
        browse(
            chromium,
            &url,
            &["--window-size=1280,800", &format!("--screenshot={}", to.display())],
        );
        (dom, to)
    });
    println!("screenshot: {}", shot.display());
    assert!(std::fs::metadata(shot).unwrap().len() > 10_000);

    let row = |name: &str| {
        let at =
            dom.find(&format!(">{name}</span>")).unwrap_or_else(|| panic!("no {name} in {dom}"));
        let begin = dom[..at].rfind("<tr").unwrap();
        &dom[begin..begin + dom[begin..].find("</tr>").unwrap()]
    };
    assert!(row("greedy").starts_with("<tr class=\"full\""), "{}", row("greedy"));
    assert!(row("greedy").contains("8.00 MiB"), "its limit: {}", row("greedy"));
    assert!(row("bakery").starts_with("<tr class=\"\""), "{}", row("bakery"));
    assert!(row("bakery").contains("2.8"), "its usage: {}", row("bakery"));
    assert!(dom.contains("<b id=\"t-full\">1</b>"));
    // The name is text.
    row("&lt;img src=x onerror=alert(1)&gt;");
    assert!(!dom.contains("<img src=\"x\""));
    assert!(dom.contains("class=\"live\""));
}

/// Set when dropped, whether the test has passed or not.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the browser on the page, and returns what it prints.
fn browse(chromium: &str, url: &str, args: &[&str]) -> String {
    let profile = Profile::new();
    let output = Command::new("timeout")
        .args(["60", chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--hide-scrollbars", "--virtual-time-budget=6000"])
        .arg(format!("--user-data-dir={}", profile.0.display()))
        .args(args)
        .arg(url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A directory for a browser, removed when dropped.
struct Profile(PathBuf);

impl Profile {
    fn new() -> Self {
        static NTH: AtomicU32 = AtomicU32::new(0);
        let nth = NTH.fetch_add(1, Ordering::Relaxed);
        let name = format!("browser-{}-{nth}", std::process::id());
        Profile(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
