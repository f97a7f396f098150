//! One client, which is never waited for.
//!
//! ```text
//!   Reading ── the whole request is there ──► Writing ── the answer is written ──► Closing ──► closed
//! ```
//!
//! A connection answers one request. `Closing` reads what the client still sends, because closing before
//! would make TCP drop the end of the answer.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::request::{MOST_BYTES, Method, Request};
use super::routes::{Response, Routes};

/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(5);
/// How long an answer may take to be read.
const RESPONSE: Duration = Duration::from_secs(20);
/// How long a client may take to close its side.
const CLOSE: Duration = Duration::from_secs(1);
/// Answers that wait to be read: beyond so many bytes, no further one is composed.
const MOST_WAITING: usize = 64 << 20;

#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_nonblocking(true),
            Stream::Tcp(stream) => stream.set_nonblocking(true),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn end_of_answer(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

#[derive(Debug)]
enum State {
    Reading(Vec<u8>),
    Writing { answer: Vec<u8>, written: usize },
    Closing,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    state: State,
    deadline: Instant,
    /// Something can be read or written.
    pub(super) is_ready: bool,
}

impl Connection {
    pub(super) fn new(stream: Stream, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking()?;
        let (state, deadline) = (State::Reading(Vec::new()), now + REQUEST);
        Ok(Connection { stream, state, deadline, is_ready: true })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let fd = match &self.stream {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        };
        match self.state {
            State::Reading(_) | State::Closing => (fd, PollFlags::IN),
            State::Writing { .. } => (fd, PollFlags::OUT),
        }
    }

    pub(super) fn is_waiting_for_request(&self) -> bool {
        matches!(self.state, State::Reading(_))
    }

    /// Bytes of the answer that are not written yet.
    pub(super) fn waiting_bytes(&self) -> usize {
        match &self.state {
            State::Writing { answer, .. } => answer.len(),
            State::Reading(_) | State::Closing => 0,
        }
    }

    /// Does what can be done without waiting. False when the connection is over. `waiting` bytes of all answers
    /// are not read yet.
    pub(super) fn advance(&mut self, routes: &Routes, now: Instant, waiting: usize) -> bool {
        if self.is_ready {
            match self.step(routes, now, waiting) {
                Ok(false) => return false,
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        now < self.deadline
    }

    fn step(&mut self, routes: &Routes, now: Instant, waiting: usize) -> io::Result<bool> {
        if let State::Reading(bytes) = &mut self.state {
            let mut buffer = [0; 4096];
            let most = buffer.len().min(MOST_BYTES - bytes.len());
            let read = self.stream.read(&mut buffer[..most])?;
            if read == 0 {
                return Ok(false);
            }
            bytes.extend_from_slice(&buffer[..read]);
            // Of what is refused as well.
            let method = if bytes.starts_with(b"HEAD ") { Method::Head } else { Method::Get };
            let response = match Request::parse(bytes) {
                Ok(None) => return Ok(true),
                Ok(Some(_)) if waiting > MOST_WAITING => {
                    Response::refused(503, "too many answers wait to be read")
                }
                Ok(Some(request)) => {
                    let is_local = matches!(self.stream, Stream::Unix(_));
                    routes.respond(&request, is_local)
                }
                Err((status, why)) => Response::refused(status, why),
            };
            self.state = State::Writing { answer: response.into_bytes(method), written: 0 };
            self.deadline = now + RESPONSE;
        }
        if let State::Writing { answer, written } = &mut self.state {
            while *written < answer.len() {
                *written += self.stream.write(&answer[*written..])?;
            }
            self.stream.end_of_answer()?;
            self.state = State::Closing;
            self.deadline = now + CLOSE;
        }
        // The client's end. A client that goes on sending is over at the deadline.
        let mut buffer = [0; 4096];
        Ok(self.stream.read(&mut buffer)? > 0)
    }
}
