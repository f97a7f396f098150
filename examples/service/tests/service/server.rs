//! A service that a test starts, and a client that does what it is told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const MIB: u64 = 1 << 20;

/// What the heap may charge beyond a limit, because it cannot be refused.
pub const BEYOND: u64 = if cfg!(feature = "heap") { 8 << 10 } else { 0 };

/// Ended when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    pub fn start() -> Self {
        Server::with(&[])
    }

    pub fn with(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_service"))
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut server = Server {
            stdout: BufReader::new(child.stdout.take().unwrap()),
            address: SocketAddr::from(([0; 4], 0)),
            child,
        };
        server.address = server.next_address();
        server
    }

    /// The next address that the service tells of.
    pub fn next_address(&mut self) -> SocketAddr {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().rsplit('/').next().unwrap().parse().expect(&line)
    }

    /// With tenants of 1 MiB.
    pub fn with_tenants(names: &[&str]) -> Self {
        let server = Server::start();
        for name in names {
            assert_eq!(server.put(&format!("/tenants/{name}?max=1M"), b"").status, 201);
        }
        server
    }

    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Connection(BufReader::new(stream))
    }

    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.begin(method, path, &format!("content-length: {}", body.len()));
        connection.write(body);
        connection.answer()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, b"")
    }

    pub fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.send("PUT", path, body)
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.send("POST", path, body)
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, b"")
    }

    pub fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).text()).unwrap()
    }

    /// Bytes in use by a cgroup.
    pub fn current(&self, cgroup: &str) -> u64 {
        self.get(&format!("/cgroups/{cgroup}/memory.current")).text().trim().parse().unwrap()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, is_so: impl Fn(&Server) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn begin(&mut self, method: &str, path: &str, header: &str) {
        self.write(
            format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{header}\r\n\r\n").as_bytes(),
        );
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    pub fn write_chunk(&mut self, bytes: &[u8]) {
        self.write(format!("{:x}\r\n", bytes.len()).as_bytes());
        self.write(bytes);
        self.write(b"\r\n");
    }

    /// Reads an answer whose length is declared.
    pub fn answer(&mut self) -> Answer {
        let mut line = || {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let first = line();
        let status = first.split(' ').nth(1).expect(&first).parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        Answer { status, headers, body }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// `%` and two digits for each byte that is no letter or digit.
pub fn encoded(name: &str) -> String {
    let one = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => (byte as char).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(one).collect()
}
