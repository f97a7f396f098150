#![doc = include_str!("../README.md")]
//!
//! # Files
//!
//! | file | has |
//! |---|---|
//! | `service` | what all requests share, and the tree of cgroups |
//! | `tenants` | how tenants come and go |
//! | `api` | what tenants use, in their cgroups |
//! | `operator`, `metrics`, `page` | what operators use |
//! | `room`, `body`, `summary` | memory that a limit may refuse, and what is made of it |
//! | `figures` | answers and latencies |

mod api;
mod body;
mod figures;
mod metrics;
mod operator;
mod page;
mod room;
mod service;
mod summary;
mod tenants;

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use axum::serve::ListenerExt;
use percpu_memcg::Limit;
use percpu_memcg::integrations::serve::Server;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::service::Service;

const USAGE: &str = "\
service [--listen ADDRESS] [--operator ADDRESS] [--socket PATH] [--max BYTES]

  --listen    where to serve tenants: 127.0.0.1:8080
  --operator  where to serve operators, if not there as well. It needs a guard: a client that reaches it sees
              all tenants and changes their limits
  --socket    where to serve figures to `memcg-top`, on a Unix socket that only this user can open
  --max       what all tenants may use together, for example 2G
";

#[derive(Debug)]
struct Args {
    listen: SocketAddr,
    operator: Option<SocketAddr>,
    socket: Option<PathBuf>,
    max: Limit,
}

fn args() -> Result<Option<Args>, Box<dyn Error + Send + Sync>> {
    use lexopt::prelude::*;

    let mut args = Args {
        listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
        operator: None,
        socket: None,
        max: Limit::MAX,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("listen") => args.listen = parser.value()?.parse()?,
            Long("operator") => args.operator = Some(parser.value()?.parse()?),
            Long("socket") => args.socket = Some(parser.value()?.into()),
            Long("max") => args.max = parser.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            arg => return Err(arg.unexpected().into()),
        }
    }
    Ok(Some(args))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(Args { listen, operator, socket, max }) = args()? else {
        print!("{USAGE}");
        return Ok(());
    };
    let service = Service::new(max)?;
    let figures = socket
        .map(|path| Server::builder(&service.pcpu).unix(path).history(&service.history).start());
    let _figures = figures.transpose()?;
    let listener = TcpListener::bind(listen).await?;
    println!("tenants on http://{}", listener.local_addr()?);
    let Some(operator) = operator else {
        return serve(listener, service.api().merge(service.operator())).await;
    };
    let of_operators = TcpListener::bind(operator).await?;
    println!("operators on http://{}", of_operators.local_addr()?);
    tokio::try_join!(serve(listener, service.api()), serve(of_operators, service.operator()),)?;
    Ok(())
}

async fn serve(listener: TcpListener, router: Router) -> Result<(), Box<dyn Error + Send + Sync>> {
    // Answers are small, and must not wait for more.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, router).with_graceful_shutdown(stopped()?).await?;
    Ok(())
}

/// Ends when the process is asked to end. Requests under way are still answered.
fn stopped() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let [term, int] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let (mut term, mut int) = (term?, int?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
