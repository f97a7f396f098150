//! Reading a request's body, within its tenant's limit.
//!
//! A declared length is charged before anything is read. A body in chunks is charged as it grows. A refused
//! body is read to its end if that is near, and dropped piece by piece: a client that is still writing then
//! reads the answer, and not that its connection was reset, and may use the connection again.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::room::{NoRoom, Room};

/// No body may be longer, whatever the tenant's limit is.
pub const LONGEST: usize = 64 << 20;

/// A client that sends nothing for so long holds the tenant's memory in vain.
const STALLED: Duration = Duration::from_secs(10);

/// So much of a refused body is read, within so much time.
const DRAINED: usize = 1 << 20;
const DRAINING: Duration = Duration::from_secs(1);

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    NoRoom(NoRoom),
    TooLong,
    Stalled,
    /// The connection broke, or the chunks are malformed.
    Broken(axum::Error),
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            BodyError::NoRoom(no_room) => return no_room.into_response(),
            BodyError::TooLong => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {LONGEST} bytes\n"))
            }
            BodyError::Stalled => {
                (StatusCode::REQUEST_TIMEOUT, "the body did not go on\n".to_owned())
            }
            BodyError::Broken(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        (status, text).into_response()
    }
}

/// Reads a body into memory of the room.
pub async fn read(headers: &HeaderMap, mut body: Body, room: &Room) -> Result<Vec<u8>, BodyError> {
    let read = read_all(&mut body, room).await;
    // A client that waits for `100 Continue` has sent nothing, and will not.
    if matches!(read, Err(BodyError::NoRoom(_) | BodyError::TooLong))
        && !headers.contains_key(header::EXPECT)
    {
        let _in_time = timeout(DRAINING, drain(&mut body)).await;
    }
    read
}

async fn read_all(body: &mut Body, room: &Room) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    let make_room = |bytes: &mut Vec<u8>, more: u64| match usize::try_from(more) {
        Ok(more) if more <= LONGEST - bytes.len() => {
            room.reserve(bytes, more).map_err(BodyError::NoRoom)
        }
        _ => Err(BodyError::TooLong),
    };
    make_room(&mut bytes, body.size_hint().lower())?;
    loop {
        let frame = timeout(STALLED, body.frame()).await.map_err(|_| BodyError::Stalled)?;
        let Some(frame) = frame else { break };
        // The pieces are parts of the connection's buffer, which would be kept by them.
        if let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() {
            make_room(&mut bytes, data.len() as u64)?;
            bytes.extend_from_slice(&data);
        }
    }
    room.fit(&mut bytes);
    Ok(bytes)
}

async fn drain(body: &mut Body) {
    let mut drained = 0;
    while drained < DRAINED
        && let Some(Ok(frame)) = body.frame().await
    {
        drained += frame.data_ref().map_or(0, |data| data.len());
    }
}
