//! Asking the server in the process.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than the server takes for any answer but that of a very large tree.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer, at most.
const MOST_BYTES: u64 = 1 << 30;

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Target {
    /// `host:port`, perhaps behind `http://` or `tcp:`, is an address. All else is a path.
    pub fn parse(text: &str) -> Self {
        let address = text.strip_prefix("http://").or_else(|| text.strip_prefix("tcp:"));
        if let Some(address) = address {
            return Target::Tcp(address.trim_end_matches('/').to_owned());
        }
        let is_port = |port: &str| port.parse::<u16>().is_ok();
        match text.rsplit_once(':') {
            Some((_, port)) if !text.contains('/') && is_port(port) => Target::Tcp(text.to_owned()),
            _ => Target::Unix(PathBuf::from(text)),
        }
    }

    /// The answer to `GET path`.
    pub fn get(&self, path: &str) -> io::Result<Vec<u8>> {
        match self {
            Target::Unix(socket) => {
                let stream = UnixStream::connect(socket)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                exchange(stream, path)
            }
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                exchange(stream, path)
            }
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(path) => path.display().fmt(f),
            Target::Tcp(address) => f.write_str(address),
        }
    }
}

fn exchange(mut stream: impl Read + Write, path: &str) -> io::Result<Vec<u8>> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: memcg\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    let (status, from) = head(&answer)?;
    let body = answer.split_off(from);
    match status {
        200 => Ok(body),
        _ => {
            let why = String::from_utf8_lossy(&body);
            Err(io::Error::other(format!("the server answers {status}: {}", why.trim_end())))
        }
    }
}

/// The status, and where the body begins. All of the body must be there.
fn head(answer: &[u8]) -> io::Result<(u16, usize)> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(answer).map_err(|error| bad(&error.to_string()))?;
    let (httparse::Status::Complete(from), Some(status)) = (parsed, response.code) else {
        return Err(bad("the answer ends early"));
    };
    let length =
        response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|length| str::from_utf8(length.value).ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| answer.len() - from < length) {
        return Err(bad("the answer ends early"));
    }
    Ok((status, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_by_a_target() {
        for (text, expected) in [
            ("/run/a.sock", Target::Unix("/run/a.sock".into())),
            ("a.sock", Target::Unix("a.sock".into())),
            ("./a:80", Target::Unix("./a:80".into())),
            ("localhost:80", Target::Tcp("localhost:80".into())),
            ("[::1]:80", Target::Tcp("[::1]:80".into())),
            ("http://a:80/", Target::Tcp("a:80".into())),
        ] {
            assert_eq!(Target::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(head(whole).unwrap(), (200, whole.len() - 2));
        for end in 0..whole.len() {
            assert!(head(&whole[..end]).is_err(), "{end}");
        }
    }
}
