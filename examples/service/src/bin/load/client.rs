//! A client with one connection, which it keeps.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::AnyError;

pub struct Client {
    address: SocketAddr,
    connection: SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Self, AnyError> {
        Ok(Client { address, connection: connect(address).await? })
    }

    /// Sends a request, and waits for the whole answer.
    ///
    /// An error is one of the connection. It is not tried again: the service may have counted the request.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<(StatusCode, Bytes), AnyError> {
        // The service closes a connection on which it did not read a body to its end.
        if self.connection.ready().await.is_err() {
            self.connection = connect(self.address).await?;
        }
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .body(Full::new(body.unwrap_or_default()))?;
        let answer = self.connection.send_request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    pub async fn text(&mut self, path: &str) -> Result<String, AnyError> {
        let (status, body) = self.send(Method::GET, path, None).await?;
        match status.is_success() {
            true => Ok(String::from_utf8(body.into())?),
            false => Err(format!("{path}: {status}").into()),
        }
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, AnyError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
