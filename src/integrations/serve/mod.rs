//! An operator's view from outside the process: interface files and figures over HTTP on a Unix socket.
//!
//! ```sh
//! curl --unix-socket /run/app/memcg.sock http://memcg/tree
//! curl --unix-socket /run/app/memcg.sock http://memcg/cgroups/tenant-a/memory.current
//! curl --unix-socket /run/app/memcg.sock -X PUT -d 64M http://memcg/cgroups/tenant-a/memory.max
//! ```
//!
//! | path | answers |
//! |---|---|
//! | `/cgroups/…/FILE` | an [interface file](crate::report::CgroupFiles). `PUT` and `POST` write it, if [allowed](ServerBuilder::allow_writes) |
//! | `/cgroups/…` | what is in a cgroup: a line for each file, and one with a slash at its end for each cgroup |
//! | `/tree` | the tree as text; `?bytes` writes bytes |
//! | `/snapshot.json` | the statistics of all cgroups, as the feature `serde` writes them |
//! | `/metrics` | OpenMetrics |
//! | `/folded` | a line for each cgroup and its own bytes, for tools that draw flame graphs |
//! | `/history`, `/history.json` | the last minute, and what its peak was made of; see [`ServerBuilder::history`] |
//! | `/chunks.svg` | who holds the per-CPU memory, as a picture |
//! | `/percpu_stats` | the allocator's statistics as text |
//! | `/about.json` | the process, the tier, the machine, the allocator's statistics |
//!
//! `/tree`, `/snapshot.json`, `/metrics` and `/folded` take `?cgroup=PATH` and `&depth=LEVELS`, `/tree` also
//! `&top=CHILDREN`. What is not plain in a name is percent-encoded, in listings too.
//!
//! # What a client can do to others
//!
//! One thread serves everybody. It waits for no client: connections do not block, a request has 5 seconds to
//! arrive, and a client has 20 seconds to read the answer. At most 32 connections are open. The next one takes
//! the place of the one that has waited longest for its request, or else of the oldest. A request has at most 16 KiB, and all
//! answers that wait to be read are together at most 64 MiB, and one more.
//!
//! A figure takes as long as the call that it comes from, and others wait for that. A write runs hooks and
//! callbacks, as the call does.
//!
//! # Who may connect
//!
//! The socket's file has mode 0600 from the moment that it exists: the user that the process runs as, and
//! root. On a TCP address everybody who reaches it may read, so bind one that only operators reach. Nothing
//! can be written there.

mod connection;
mod request;
mod routes;
mod socket;

use std::fmt;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::percpu::PerCpuAllocator;
use crate::report::History;
use crate::sys::forks::{self, ProcessMark};

use connection::{Connection, Stream};
use routes::Routes;
use socket::UnixSocket;

/// Connections that are open at once.
const MOST_CONNECTIONS: usize = 32;

/// How long no connection is accepted after the process had no descriptor for one.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// Serves the figures of an allocator until it is dropped. See the [module](self) for what there is.
///
/// Dropping it closes all connections, ends the thread and removes the socket's file. It waits for the
/// request that is being answered, unless that request drops it. In a forked child the drop does nothing.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::integrations::serve::Server;
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let _held = pcpu.root().create("tenant")?.charge(1000)?;
/// # let directory = std::env::temp_dir();
/// let path = directory.join(format!("memcg-{}.sock", std::process::id()));
/// let server = Server::builder(&pcpu).unix(&path).start()?;
///
/// let mut client = UnixStream::connect(&path)?;
/// client.write_all(b"GET /cgroups/tenant/memory.current HTTP/1.1\r\nHost: memcg\r\n\r\n")?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer)?;
/// assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n1000\n"));
///
/// drop(server);
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the server ends when this is dropped"]
pub struct Server {
    tcp: Option<SocketAddr>,
    unix: Option<PathBuf>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread.
    process: ProcessMark,
}

/// Settings for a [`Server`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::integrations::serve::{Server, ServerBuilder};
/// use percpu_memcg::report::History;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let history = Arc::new(History::of(&pcpu.root()));
/// let sampler = History::start(&history, Duration::from_secs(1))?;
/// let builder: ServerBuilder = Server::builder(&pcpu).tcp("127.0.0.1:0").history(&history);
/// let server = builder.start()?;
/// println!("curl http://{}/tree", server.tcp_address().expect("it has one"));
/// # drop((server, sampler));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder starts nothing before `start`"]
pub struct ServerBuilder {
    allocator: PerCpuAllocator,
    history: Option<Arc<History>>,
    allows_writes: bool,
    unix: Option<PathBuf>,
    tcp: Option<io::Result<Vec<SocketAddr>>>,
}

impl Server {
    /// Settings for a server: it needs a [path](ServerBuilder::unix) or an [address](ServerBuilder::tcp).
    pub fn builder(allocator: &PerCpuAllocator) -> ServerBuilder {
        let allocator = allocator.clone();
        ServerBuilder { allocator, history: None, allows_writes: false, unix: None, tcp: None }
    }

    /// The address that it listens on, if it has one: with port 0 the system chose the port.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }
}

impl ServerBuilder {
    /// Listens on a Unix socket at this path, whose file has mode 0600.
    ///
    /// A socket that another process left behind, on which nobody listens, is replaced.
    pub fn unix(self, path: impl Into<PathBuf>) -> Self {
        ServerBuilder { unix: Some(path.into()), ..self }
    }

    /// Listens on a TCP address, on which nothing can be written.
    pub fn tcp(self, address: impl ToSocketAddrs) -> Self {
        ServerBuilder { tcp: Some(address.to_socket_addrs().map(Iterator::collect)), ..self }
    }

    /// Answers `/history` and `/history.json` from this ring. The caller [fills](History::start) it.
    pub fn history(self, history: &Arc<History>) -> Self {
        ServerBuilder { history: Some(Arc::clone(history)), ..self }
    }

    /// Clients of the Unix socket may write interface files: set limits, reclaim, freeze, kill.
    ///
    /// Off by default. `cgroup.procs` and `cgroup.threads` stay closed: a write moves the thread that
    /// writes, which is the server's.
    pub fn allow_writes(self, allow: bool) -> Self {
        ServerBuilder { allows_writes: allow, ..self }
    }

    /// Binds, and starts the thread.
    ///
    /// # Errors
    ///
    /// What the system says: `EADDRINUSE` where another process listens. `InvalidInput` when there is neither
    /// a path nor an address.
    pub fn start(self) -> io::Result<Server> {
        let unix = self.unix.map(UnixSocket::bind).transpose()?;
        let tcp = self.tcp.transpose()?.map(|to| TcpListener::bind(&to[..])).transpose()?;
        if unix.is_none() && tcp.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no path and no address"));
        }
        tcp.as_ref().map(|tcp| tcp.set_nonblocking(true)).transpose()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut server = Server {
            tcp: tcp.as_ref().map(TcpListener::local_addr).transpose()?,
            unix: unix.as_ref().map(|unix| unix.path().to_owned()),
            stop: Arc::clone(&stop),
            thread: None,
            process: ProcessMark::of_this(),
        };
        let routes = Routes::new(self.allocator, self.history, self.allows_writes);
        let work = Loop { routes, unix, tcp, stop, connections: Vec::new() };
        let thread = thread::Builder::new().name("memcg-serve".into());
        server.thread = Some(thread.spawn(move || work.run())?);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A forked child has no such thread, and shares the descriptors with the one that has.
        if !self.process.is_of_this() {
            mem::forget(self.thread.take());
            return;
        }
        // It fails only where it is set already.
        let _set = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        // Panics of callbacks do not reach the thread; and a drop must not panic.
        // A callback that a write has called may drop it on the thread itself, which ends then.
        let is_other = |of: &JoinHandle<()>| of.thread().id() != thread::current().id();
        let _ended = self.thread.take().filter(is_other).map(JoinHandle::join);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Server { tcp, unix, .. } = self;
        f.debug_struct("Server").field("unix", unix).field("tcp", tcp).finish_non_exhaustive()
    }
}

/// What the thread has.
struct Loop {
    routes: Routes,
    unix: Option<UnixSocket>,
    tcp: Option<TcpListener>,
    stop: Arc<OwnedFd>,
    /// In the order in which they were accepted.
    connections: Vec<Connection>,
}

impl Loop {
    fn run(mut self) {
        let mut accepts_from = Instant::now();
        loop {
            let now = Instant::now();
            let pause = accepts_from.checked_duration_since(now).filter(|pause| !pause.is_zero());
            let ready = self.wait(now, pause);
            if ready[0] {
                return;
            }
            let now = Instant::now();
            let mut ready = ready.into_iter().skip(1);
            let accepts = [ready.next(), ready.next()].map(|ready| ready == Some(true));
            for connection in &mut self.connections {
                connection.is_ready = ready.next() == Some(true);
            }
            let mut waiting = self.connections.iter().map(Connection::waiting_bytes).sum::<usize>();
            let mut advance = |connection: &mut Connection| {
                let before = connection.waiting_bytes();
                let goes_on = connection.advance(&self.routes, now, waiting);
                let after = if goes_on { connection.waiting_bytes() } else { 0 };
                waiting = waiting + after - before;
                goes_on
            };
            forks::between(|| self.connections.retain_mut(&mut advance));
            if accepts.contains(&true) && !self.accept(accepts, now) {
                accepts_from = now + NO_DESCRIPTOR;
            }
        }
    }

    /// Until something is ready, or the first deadline is over. Tells for each descriptor whether it is
    /// ready: to stop, the two listeners, and the connections.
    fn wait(&self, now: Instant, pause: Option<Duration>) -> Vec<bool> {
        let stop = (self.stop.as_fd(), PollFlags::IN);
        // In place of a listener that there is not, or that is not to be asked: never ready.
        let none = (self.stop.as_fd(), PollFlags::empty());
        let unix = self.unix.as_ref().map(|unix| unix.listener().as_fd());
        let [unix, tcp] = [unix, self.tcp.as_ref().map(AsFd::as_fd)].map(|listener| {
            listener.filter(|_| pause.is_none()).map_or(none, |listener| (listener, PollFlags::IN))
        });
        let connections = self.connections.iter().map(|connection| connection.interest());
        let mut fds: Vec<PollFd<'_>> = [stop, unix, tcp]
            .into_iter()
            .chain(connections)
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        let first = self.connections.iter().map(Connection::deadline).min();
        let left = first.map(|first| first.saturating_duration_since(now));
        let timeout =
            left.into_iter().chain(pause).min().and_then(|left| Timespec::try_from(left).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // Interrupted, or no memory for the moment: nothing is known.
            thread::sleep(Duration::from_millis(1));
            return vec![false; fds.len()];
        }
        fds.iter().map(|fd| !fd.revents().is_empty()).collect()
    }

    /// Takes new connections. False when the process has no descriptor for one.
    fn accept(&mut self, [unix, tcp]: [bool; 2], now: Instant) -> bool {
        for _ in 0..MOST_CONNECTIONS {
            let from_unix =
                self.unix.as_ref().filter(|_| unix).map(|unix| unix.listener().accept());
            let from_tcp = self.tcp.as_ref().filter(|_| tcp).map(TcpListener::accept);
            let streams = [
                from_unix.map(|new| new.map(|(stream, _)| Stream::Unix(stream))),
                from_tcp.map(|new| new.map(|(stream, _)| Stream::Tcp(stream))),
            ];
            let mut is_last = true;
            for stream in streams.into_iter().flatten() {
                match stream.and_then(|stream| Connection::new(stream, now)) {
                    Ok(connection) => self.add(connection),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    // Of the client: it went away.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
                is_last = false;
            }
            if is_last {
                break;
            }
        }
        true
    }

    /// A client that sends nothing must not keep others out.
    fn add(&mut self, connection: Connection) {
        if self.connections.len() == MOST_CONNECTIONS {
            let idle = self.connections.iter().position(Connection::is_waiting_for_request);
            self.connections.remove(idle.unwrap_or(0));
        }
        self.connections.push(connection);
    }
}
