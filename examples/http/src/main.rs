//! Serves two tenants on a socket, and sends some requests:
//! `cargo run --manifest-path examples/http/Cargo.toml`.

use std::error::Error;

use http_memcg::router;
use percpu_memcg::{Limit, PerCpuAllocator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let [small, large] = ["small", "large"].map(|name| pcpu.root().create(name));
    small?.set_max(Limit::bytes(1000))?;
    large?.set_max(Limit::bytes(1 << 20))?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = router(&pcpu.root());
    tokio::spawn(async move { axum::serve(listener, service).await });

    for (path, length) in [("/small/length", 900), ("/small/length", 1100), ("/large/double", 1100)]
    {
        let mut connection = TcpStream::connect(address).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&vec![b'x'; length]).await?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.lines().next().unwrap_or_default();
        println!(
            "{length} bytes to {path}: {status}, {} bytes: {:.60}",
            body.len(),
            body.trim_end()
        );
    }
    print!("{}", pcpu.root().snapshot().tree());
    Ok(())
}
