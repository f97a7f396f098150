//! What is answered.

use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::request::{Method, Request};
use crate::memcg::{MemcgSnapshot, TreeError};
use crate::percpu::PerCpuAllocator;
use crate::placement::Stats;
use crate::report::{ChunkMap, FileError, History, Snapshot};
use crate::sys::{ThisCpu, Tier};

/// In a name as part of a path: all but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
/about.json      the process, its machine and its allocator
/cgroups/        interface files, by cgroup
/tree            the tree as text                           ?bytes ?cgroup= &depth= &top=
/snapshot.json   the statistics of all cgroups              ?cgroup= &depth=
/metrics         OpenMetrics                                ?cgroup= &depth=
/folded          stacks for flame graphs, in bytes          ?cgroup= &depth=
/history         what the peak of the last minute was made of
/history.json    the samples of the last minute
/chunks.svg      who holds the per-CPU memory, as a picture
/percpu_stats    the allocator's statistics as text
";

#[derive(Debug)]
pub(super) struct Routes {
    allocator: PerCpuAllocator,
    history: Option<Arc<History>>,
    allows_writes: bool,
    started: Instant,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

/// `/about.json`.
#[derive(Serialize)]
struct About<'a> {
    program: String,
    pid: u32,
    version: &'a str,
    served_seconds: u64,
    allows_writes: bool,
    has_history: bool,
    tier: Tier,
    has_concurrency_ids: bool,
    possible_cpus: usize,
    unit_size: usize,
    stats: Stats,
}

impl Routes {
    pub(super) fn new(
        allocator: PerCpuAllocator,
        history: Option<Arc<History>>,
        allows_writes: bool,
    ) -> Self {
        Routes { allocator, history, allows_writes, started: Instant::now() }
    }

    /// The answer to a request, over the Unix socket or not. A panic of a callback is an answer as well.
    pub(super) fn respond(&self, request: &Request, is_local: bool) -> Response {
        let answer = panic::catch_unwind(AssertUnwindSafe(|| self.answer(request, is_local)));
        match answer {
            Ok(Ok(response) | Err(response)) => response,
            Err(payload) => {
                // Of a user's type, whose drop may panic as well.
                std::mem::forget(payload);
                Response::refused(500, "a callback panicked")
            }
        }
    }

    fn answer(&self, request: &Request, is_local: bool) -> Result<Response, Response> {
        let parts: Vec<&str> = request.path.iter().map(String::as_str).collect();
        if let ["cgroups", path @ ..] = &parts[..] {
            let path = path.join("/");
            return match request.method {
                Method::Write => self.write(&path, &request.body, is_local),
                Method::Get | Method::Head => self.read(&path),
            };
        }
        let &[name] = &parts[..] else {
            return match parts.is_empty() && request.method != Method::Write {
                true => Ok(Response::text(INDEX)),
                false => Err(Response::refused(404, "there is no such page")),
            };
        };
        if request.method == Method::Write {
            return Err(Response::refused(405, "this can only be read"));
        }
        Ok(match name {
            "about.json" => Response::json(&self.about()),
            "tree" => {
                let snapshot = self.snapshot(request)?;
                let tree =
                    snapshot.tree().depth(number(request, "depth")?).top(number(request, "top")?);
                match request.query("bytes") {
                    Some(_) => Response::text(tree),
                    None => Response::text(format_args!("{tree:#}")),
                }
            }
            "snapshot.json" => {
                let (mut snapshot, depth) = (self.snapshot(request)?, number(request, "depth")?);
                snapshot.cgroups.retain(|cgroup| cgroup.depth <= depth);
                Response::json(&snapshot)
            }
            "metrics" => {
                let (snapshot, depth) = (self.snapshot(request)?, number(request, "depth")?);
                let metrics = snapshot.open_metrics().depth(depth).allocator(&self.allocator);
                let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                Response { content_type, ..Response::text(metrics) }
            }
            "folded" => {
                let (snapshot, depth) = (self.snapshot(request)?, number(request, "depth")?);
                Response::text(snapshot.folded().depth(depth))
            }
            "history" => Response::text(format_args!("{:#}", self.history()?.report())),
            "history.json" => Response::json(self.history()?),
            "chunks.svg" => {
                let svg = ChunkMap::take(&self.allocator).to_svg();
                Response { content_type: "image/svg+xml", ..Response::text(svg) }
            }
            "percpu_stats" => Response::text(Snapshot::take(&self.allocator)),
            _ => return Err(Response::refused(404, "there is no such page")),
        })
    }

    fn about(&self) -> About<'_> {
        let program = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        About {
            program: program.trim_end().to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            served_seconds: self.started.elapsed().as_secs(),
            allows_writes: self.allows_writes,
            has_history: self.history.is_some(),
            tier: ThisCpu::tier(),
            has_concurrency_ids: ThisCpu::has_concurrency_ids(),
            possible_cpus: self.allocator.machine().nr_possible(),
            unit_size: self.allocator.layout().unit_size,
            stats: self.allocator.stats(),
        }
    }

    fn history(&self) -> Result<&History, Response> {
        let none = || Response::refused(404, "this server has no history");
        self.history.as_deref().ok_or_else(none)
    }

    fn snapshot(&self, request: &Request) -> Result<MemcgSnapshot, Response> {
        let path = request.query("cgroup").unwrap_or("/");
        Ok(self.allocator.cgroup(path)?.snapshot())
    }

    fn read(&self, path: &str) -> Result<Response, Response> {
        let files = self.allocator.files();
        match files.read(path) {
            Err(FileError::IsDirectory { .. }) => {}
            Err(error) if error.is_not_found() && self.allocator.cgroup(path).is_ok() => {}
            text => return Ok(Response::text(text?)),
        }
        let names = files.list(path)?;
        // Names of files are reserved, and come first.
        let cgroups = self.allocator.cgroup(path)?.children();
        let is_cgroup =
            |name: &str| cgroups.binary_search_by(|cgroup| cgroup.name().cmp(name)).is_ok();
        let line = |name: &String| {
            let end = if is_cgroup(name) { "/\n" } else { "\n" };
            format!("{}{end}", utf8_percent_encode(name, ENCODED))
        };
        Ok(Response::text(names.iter().map(line).collect::<String>()))
    }

    fn write(&self, path: &str, text: &str, is_local: bool) -> Result<Response, Response> {
        if !is_local {
            return Err(Response::refused(403, "only clients of the Unix socket may write"));
        }
        if !self.allows_writes {
            return Err(Response::refused(403, "this server allows no writes"));
        }
        if path.ends_with("cgroup.procs") || path.ends_with("cgroup.threads") {
            return Err(Response::refused(403, "a write would move the thread of the server"));
        }
        self.allocator.files().write(path, text)?;
        Ok(Response { status: 204, ..Response::text("") })
    }
}

/// What the query says of a bound; without it, there is none.
fn number(request: &Request, name: &str) -> Result<usize, Response> {
    let value = request.query(name).map(str::parse);
    value.unwrap_or(Ok(usize::MAX)).map_err(|_| Response::refused(400, "a bound is no number"))
}

impl Response {
    fn text(text: impl Display) -> Self {
        Response { status: 200, content_type: TEXT, body: text.to_string().into_bytes() }
    }

    fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Response { status: 200, content_type: JSON, body },
            Err(_) => Response::refused(500, "the figures are no JSON"),
        }
    }

    pub(super) fn refused(status: u16, why: impl Display) -> Self {
        Response { status, ..Response::text(format_args!("{why}\n")) }
    }

    /// The whole answer.
    pub(super) fn into_bytes(self, method: Method) -> Vec<u8> {
        let Response { status, content_type, body } = self;
        let reason = match status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            410 => "Gone",
            413 => "Content Too Large",
            417 => "Expectation Failed",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let length = match status {
            204 => String::new(),
            _ => format!("Content-Length: {}\r\n", body.len()),
        };
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n{length}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        );
        let mut bytes = head.into_bytes();
        if method != Method::Head {
            bytes.extend(body);
        }
        bytes
    }
}

impl From<FileError> for Response {
    fn from(error: FileError) -> Self {
        let status = match error.errno() {
            libc::ENOENT | libc::ENOTDIR => 404,
            libc::ENODEV => 410,
            libc::EACCES => 405,
            libc::EINVAL | libc::ERANGE | libc::EISDIR => 400,
            libc::EBUSY | libc::EAGAIN => 409,
            libc::EOPNOTSUPP => 501,
            _ => 500,
        };
        Response::refused(status, error)
    }
}

impl From<TreeError> for Response {
    fn from(error: TreeError) -> Self {
        FileError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcg::Memcg;

    fn get(routes: &Routes, target: &str, method: &str, body: &str) -> (u16, String) {
        let request =
            format!("{method} {target} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let request = Request::parse(request.as_bytes()).unwrap().unwrap();
        let response = routes.respond(&request, true);
        (response.status, String::from_utf8(response.body).unwrap())
    }

    #[test]
    fn a_directory_lists_names_that_can_be_asked_for() {
        let allocator = PerCpuAllocator::new().unwrap();
        let hostile = "a b%\u{1b}[2J?#日";
        let tenant: Memcg = allocator.root().create(hostile).unwrap();
        let _held = tenant.charge(7).unwrap();
        let routes = Routes::new(allocator, None, false);
        let (status, listing) = get(&routes, "/cgroups/", "GET", "");
        assert_eq!(status, 200);
        let name = listing.lines().find(|name| name.ends_with('/')).unwrap();
        assert_eq!(name, "a%20b%25%1B%5B2J%3F%23%E6%97%A5/");
        assert_eq!(
            get(&routes, &format!("/cgroups/{name}memory.current"), "GET", ""),
            (200, "7\n".into())
        );
        // No cgroup has such a name, and it leads nowhere.
        assert_eq!(get(&routes, "/cgroups/../../etc/passwd", "GET", "").0, 404);
    }

    #[test]
    fn a_panic_of_a_callback_is_answered() {
        let allocator = PerCpuAllocator::new().unwrap();
        let tenant = allocator.root().create("a").unwrap();
        let _held = tenant.charge(1 << 20).unwrap();
        let _hook = tenant.on_reclaim(0, |_| panic!("of the user"));
        let routes = Routes::new(allocator, None, true);
        assert_eq!(get(&routes, "/cgroups/a/memory.reclaim", "PUT", "4096").0, 500);
        assert_eq!(get(&routes, "/cgroups/a/memory.current", "GET", "").0, 200);
    }
}
