//! Reading a request.

use std::borrow::Cow;

use httparse::{EMPTY_HEADER, Status};
use percent_encoding::percent_decode_str;

/// Bytes of a request, at most.
pub(super) const MOST_BYTES: usize = 16 << 10;

/// Headers of a request, at most.
const MOST_HEADERS: usize = 64;

/// A request that has arrived.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The parts of the path, decoded.
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(String, String)>,
    pub(super) body: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    /// As `Get`, and the body is left out.
    Head,
    Write,
}

/// Why it is not answered.
pub(super) type Refused = (u16, &'static str);

impl Request {
    /// The request that `bytes` begin with; `None` while a part of it is missing.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, Refused> {
        let mut headers = [EMPTY_HEADER; MOST_HEADERS];
        let mut head = httparse::Request::new(&mut headers);
        let parsed = head.parse(bytes).map_err(|error| match error {
            httparse::Error::TooManyHeaders => (431, "too many headers"),
            _ => (400, "this is no HTTP request"),
        })?;
        let Status::Complete(end) = parsed else {
            return match bytes.len() < MOST_BYTES {
                true => Ok(None),
                false => Err((431, "the request is too long")),
            };
        };
        let method = match head.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            Some("PUT" | "POST") => Method::Write,
            _ => return Err((405, "only GET, HEAD, PUT and POST are known")),
        };
        let mut length = None;
        for header in head.headers.iter() {
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err((501, "the body needs a Content-Length"));
            }
            if header.name.eq_ignore_ascii_case("expect") {
                // The client sends the body without being asked to.
                return Err((417, "send the body at once"));
            }
            if header.name.eq_ignore_ascii_case("content-length") {
                let digits = str::from_utf8(header.value).ok().filter(|text| is_number(text));
                let value: Option<usize> = digits.and_then(|digits| digits.parse().ok());
                if value.is_none() || length.is_some_and(|length| Some(length) != value) {
                    return Err((400, "Content-Length is no number"));
                }
                length = value;
            }
        }
        let length = length.unwrap_or(0);
        if length > MOST_BYTES - end.min(MOST_BYTES) {
            return Err((413, "the body is too long"));
        }
        let Some(body) = bytes.get(end..end + length) else { return Ok(None) };
        let body = str::from_utf8(body).map_err(|_| (400, "the body is not UTF-8"))?;
        let (path, query) = split_target(head.path.unwrap_or("/"))?;
        Ok(Some(Request { method, path, query, body: body.to_owned() }))
    }

    /// What the query says of `name`.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

type Target = (Vec<String>, Vec<(String, String)>);

/// The parts of the path, and the query. A part is split off before it is decoded, so that no name can
/// stand for two.
fn split_target(target: &str) -> Result<Target, Refused> {
    // Proxies are sent whole addresses.
    let target = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
            rest.find('/').map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    let target = target.split('#').next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts = path.split('/').filter(|part| !part.is_empty());
    let parts: Result<Vec<String>, Refused> = parts
        .map(|part| match decoded(part)? {
            part if part.contains(['/', '\0', '\n']) => Err((400, "no name has such a character")),
            part => Ok(part.into_owned()),
        })
        .collect();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs: Result<Vec<(String, String)>, Refused> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?.into_owned(), decoded(value)?.into_owned()))
        })
        .collect();
    Ok((parts?, pairs?))
}

fn decoded(text: &str) -> Result<Cow<'_, str>, Refused> {
    percent_decode_str(text).decode_utf8().map_err(|_| (400, "the address is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<Option<Request>, Refused> {
        Request::parse(head.as_bytes())
    }

    fn path(target: &str) -> Result<Vec<String>, u16> {
        let request = parse(&format!("GET {target} HTTP/1.1\r\n\r\n"));
        request.map(|request| request.unwrap().path).map_err(|(status, _)| status)
    }

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(path("/a//b/").unwrap(), ["a", "b"]);
        assert_eq!(path("/a%20b/%E6%97%A5/%25").unwrap(), ["a b", "日", "%"]);
        assert_eq!(path("/日").unwrap(), ["日"]);
        assert_eq!(path("/a/../b").unwrap(), ["a", "..", "b"]);
        assert_eq!(path("/a%2f..%2fb"), Err(400));
        assert_eq!(path("/a%00"), Err(400));
        assert_eq!(path("/a%0a"), Err(400));
        assert_eq!(path("/%ff"), Err(400));
        assert_eq!(path("http://memcg/tree").unwrap(), ["tree"]);
        assert_eq!(path("http://memcg").unwrap(), [""; 0]);
    }

    #[test]
    fn a_request_is_read_when_all_of_it_is_there() {
        let whole = "PUT /cgroups/a/memory.max?x=1&y HTTP/1.1\r\nContent-Length: 3\r\n\r\n64M";
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).unwrap().is_none(), "{end}");
        }
        let request = parse(whole).unwrap().unwrap();
        assert_eq!((request.method, &*request.body), (Method::Write, "64M"));
        assert_eq!((request.query("x"), request.query("y")), (Some("1"), Some("")));
        assert_eq!(request.query("z"), None);
    }

    #[test]
    fn what_is_too_long_or_wrong_is_refused() {
        let status = |text: &str| parse(text).unwrap_err().0;
        assert_eq!(status("\u{1}\r\n\r\n"), 400);
        assert_eq!(status("DELETE / HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
        for length in ["-1", "+1", "x", "", "99999999999999999999999"] {
            assert_eq!(status(&format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")), 400);
        }
        assert_eq!(status("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        assert_eq!(status("PUT / HTTP/1.1\r\nContent-Length: 16384\r\n\r\n"), 413);
        assert_eq!(
            status(&format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", usize::MAX)),
            413
        );
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(MOST_BYTES))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65))), 431);
    }
}
