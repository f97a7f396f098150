//! Load for the service: many tenants within their limits, and one that is pushed over its limit.
//!
//! ```sh
//! cargo run --release &
//! cargo run --release --bin load -- --connections 50 --seconds 60
//! ```
//!
//! One of the tenants, `load-greedy`, sends large documents all the time. In the first half of the time each of
//! them replaces an earlier one. In the second half it keeps all of them: it is refused soon, and goes on
//! trying. Nothing else changes between the halves. Two questions are answered:
//!
//! 1. Are the totals on `/metrics` those that were counted here, for every tenant and status? If not, the exit
//!    code is 1.
//! 2. What is the 99th percentile of the *other* tenants' latencies before, and while the one is at its limit?
//!
//! On a busy machine a 99th percentile changes by half from one minute to the next. `--pairs` repeats both halves,
//! and the median of the changes counts. `--control` pushes no tenant, and shows what the machine changes.
//!
//! Requests are sent at a fixed rate, whether answers are fast or not. So a slow answer delays no other
//! question, and a request that had to wait for its connection counts that wait.

mod client;
mod report;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use tokio::time::sleep_until;

use crate::client::Client;
use crate::report::{Counts, Latencies};

const USAGE: &str = "\
load [--address ADDRESS] [--connections N] [--seconds N] [--rate N] [--tenants N] [--pairs N]
     [--bound PERCENT] [--control] [--keep]

  --address      where the service is: 127.0.0.1:8080
  --connections  50, each of them for one tenant
  --seconds      of both halves together: 60
  --rate         requests in a second, on all connections together: 1000
  --tenants      10, the greedy one included
  --pairs        how often both halves are repeated: 1
  --bound        fail if the 99th percentile of the others rises by more, in the median of all pairs
  --control      push no tenant, to see what the machine changes by itself
  --keep         leave the tenants as they are at the end
";

const GREEDY: &str = "load-greedy";
const MAX: &str = "64M";
const MAX_OF_GREEDY: &str = "4M";

/// Keys that a connection uses.
const KEYS: u64 = 16;
/// What the greedy tenant sends, and how many of them each of its connections keeps at first.
const LARGE: usize = 64 << 10;
const FEW: u64 = 4;
/// Of each half, not measured.
const SETTLING: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Args {
    address: SocketAddr,
    connections: usize,
    seconds: f64,
    rate: f64,
    tenants: usize,
    pairs: usize,
    bound: Option<f64>,
    control: bool,
    keep: bool,
}

fn args() -> Result<Option<Args>, lexopt::Error> {
    use lexopt::prelude::*;

    let mut args = Args {
        address: SocketAddr::from(([127, 0, 0, 1], 8080)),
        connections: 50,
        seconds: 60.0,
        rate: 1000.0,
        tenants: 10,
        pairs: 1,
        bound: None,
        control: false,
        keep: false,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("address") => args.address = parser.value()?.parse()?,
            Long("connections") => args.connections = parser.value()?.parse()?,
            Long("seconds") => args.seconds = parser.value()?.parse()?,
            Long("rate") => args.rate = parser.value()?.parse()?,
            Long("tenants") => args.tenants = parser.value()?.parse()?,
            Long("pairs") => args.pairs = parser.value()?.parse()?,
            Long("bound") => args.bound = Some(parser.value()?.parse()?),
            Long("control") => args.control = true,
            Long("keep") => args.keep = true,
            Long("help") | Short('h') => return Ok(None),
            arg => return Err(arg.unexpected()),
        }
    }
    if args.tenants < 2 || args.connections < args.tenants || args.pairs == 0 || args.rate <= 0.0 {
        return Err("at least two tenants, a connection for each, and a rate".into());
    }
    Ok(Some(args))
}

type AnyError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let Some(args) = args()? else {
        print!("{USAGE}");
        return Ok(());
    };
    let args = Arc::new(args);
    let mut operator = Client::connect(args.address)
        .await
        .map_err(|error| format!("no service answers on {}: {error}", args.address))?;
    let names = create(&args, &mut operator).await?;

    let mut workers = Vec::new();
    for nth in 0..args.connections {
        let tenant = names[nth % names.len()].clone();
        workers.push(Worker::connect(&args, nth, tenant).await?);
    }
    println!(
        "{} connections, {} tenants, {} requests/s, {} s",
        args.connections,
        args.tenants,
        args.rate,
        args.seconds * args.pairs as f64
    );

    let mut changes = Vec::new();
    for pair in 1..=args.pairs {
        let half = Duration::from_secs_f64(args.seconds / 2.0);
        let (before, _) = run(&mut workers, half, false).await?;
        let (during, at_limit) = run(&mut workers, half, !args.control).await?;
        if args.pairs > 1 {
            println!("\npair {pair}");
        }
        println!("\nthe others, while all behave:  {before}");
        println!(
            "the others, {:19}{during}",
            if at_limit { "one at its limit:" } else { "none at its limit:" }
        );
        let change = 100.0 * (during.p99() / before.p99() - 1.0);
        println!("their 99th percentile changes by {change:+.1} %");
        changes.push(change);
        for worker in workers.iter_mut().filter(|worker| worker.is_greedy()) {
            worker.free().await?;
        }
    }
    changes.sort_by(f64::total_cmp);
    let change = changes[changes.len() / 2];
    if args.pairs > 1 {
        println!("\nmedian of {} pairs: {change:+.1} %", args.pairs);
    }

    let mut counted = Counts::default();
    workers.iter().for_each(|worker| counted.add(&worker.counts));
    let told = Counts::of_metrics(&operator.text("/metrics").await?, &names);
    println!("\n{}", counted.beside(&told));
    let is_equal = counted == told;
    let is_pushed = counted.of(GREEDY, 429) > 0;
    let are_others_free = names.iter().all(|name| name == GREEDY || counted.of(name, 429) == 0);

    if !args.keep {
        for name in &names {
            let (status, answer) =
                operator.send(Method::DELETE, &format!("/tenants/{name}"), None).await?;
            if !status.is_success() {
                return Err(format!("{name} was not removed: {status} {answer:?}").into());
            }
            if name == GREEDY {
                println!("removed: {}", String::from_utf8_lossy(&answer));
            }
        }
    }
    if !is_equal {
        return Err("/metrics does not have what was counted here".into());
    }
    println!("/metrics has exactly what was counted here");
    if is_pushed == args.control || !are_others_free {
        return Err("not the greedy tenant alone was refused".into());
    }
    match args.bound {
        Some(bound) if change > bound => Err(format!("{change:+.1} % is above {bound} %").into()),
        _ => Ok(()),
    }
}

/// Creates the tenants, the greedy one last. Those of an earlier run are removed.
async fn create(args: &Args, operator: &mut Client) -> Result<Vec<String>, AnyError> {
    let mut names: Vec<String> = (1..args.tenants).map(|nth| format!("load-{nth:02}")).collect();
    names.push(GREEDY.to_owned());
    for name in &names {
        operator.send(Method::DELETE, &format!("/tenants/{name}"), None).await?;
        let max = if name == GREEDY { MAX_OF_GREEDY } else { MAX };
        let path = format!("/tenants/{name}?max={max}");
        let (status, text) = operator.send(Method::PUT, &path, None).await?;
        if status != 201 {
            return Err(format!("{path}: {status} {}", String::from_utf8_lossy(&text)).into());
        }
    }
    Ok(names)
}

/// Runs all workers for a time. Returns the latencies of the tenants that behave, and whether one was refused.
async fn run(
    workers: &mut Vec<Worker>,
    time: Duration,
    is_pushed: bool,
) -> Result<(Latencies, bool), AnyError> {
    let begin = Instant::now() + Duration::from_millis(20);
    let is_refused = Arc::new(AtomicBool::new(false));
    let half = Half { begin, end: begin + time, is_pushed, is_refused: Arc::clone(&is_refused) };
    let running: Vec<_> = std::mem::take(workers)
        .into_iter()
        .map(|mut worker| {
            let half = half.clone();
            tokio::spawn(async move {
                let latencies = worker.run(&half).await?;
                Ok::<_, AnyError>((worker, latencies))
            })
        })
        .collect();
    let mut all = Latencies::default();
    for worker in running {
        let (worker, latencies) = worker.await??;
        if !worker.is_greedy() {
            all.append(latencies);
        }
        workers.push(worker);
    }
    all.sort();
    Ok((all, is_refused.load(Ordering::Relaxed)))
}

/// What all workers do for some time.
#[derive(Clone)]
struct Half {
    begin: Instant,
    end: Instant,
    is_pushed: bool,
    /// The greedy tenant was.
    is_refused: Arc<AtomicBool>,
}

impl Half {
    fn is_measured(&self, at: Instant) -> bool {
        // Where one is to be at its limit, from then on.
        at >= self.begin + SETTLING && (!self.is_pushed || self.is_refused.load(Ordering::Relaxed))
    }
}

/// A connection of a tenant.
struct Worker {
    client: Client,
    nth: usize,
    tenant: String,
    period: Duration,
    phase: f64,
    counts: Counts,
    random: u64,
    /// Large documents, by number.
    kept: u64,
}

impl Worker {
    async fn connect(args: &Args, nth: usize, tenant: String) -> Result<Self, AnyError> {
        Ok(Worker {
            client: Client::connect(args.address).await?,
            nth,
            tenant,
            period: Duration::from_secs_f64(args.connections as f64 / args.rate),
            phase: nth as f64 / args.connections as f64,
            counts: Counts::default(),
            random: 0x9e37_79b9_7f4a_7c15 ^ (nth as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95),
            kept: 0,
        })
    }

    fn is_greedy(&self) -> bool {
        self.tenant == GREEDY
    }

    async fn run(&mut self, half: &Half) -> Result<Latencies, AnyError> {
        let mut latencies = Latencies::default();
        let mut due = half.begin + self.period.mul_f64(self.phase);
        let mut is_late = false;
        while due < half.end {
            let begun = if is_late {
                due
            } else {
                sleep_until(due.into()).await;
                // The timer's own delay is not the service's.
                Instant::now()
            };
            let status = match self.is_greedy() {
                true => self.keep(half.is_pushed).await?,
                false => self.behave().await?,
            };
            let now = Instant::now();
            if half.is_measured(begun) {
                latencies.push(now - begun);
            }
            if status == 429 {
                half.is_refused.store(true, Ordering::Relaxed);
            }
            due += self.period;
            is_late = now > due;
        }
        Ok(latencies)
    }

    /// What a tenant within its limit does.
    async fn behave(&mut self) -> Result<u16, AnyError> {
        let key = self.next() % KEYS;
        let path = format!("/documents/{}-{key}", self.nth);
        match self.next() % 10 {
            0..=4 => self.send(Method::GET, &path, None).await,
            5..=7 => {
                let body = self.body();
                self.send(Method::PUT, &path, Some(body)).await
            }
            8 => self.send(Method::DELETE, &path, None).await,
            _ => {
                let body = self.body();
                self.send(Method::POST, "/summary", Some(body)).await
            }
        }
    }

    /// Sends a large document, as another one or in place of one.
    async fn keep(&mut self, all: bool) -> Result<u16, AnyError> {
        let key = if all { self.kept } else { self.next() % FEW };
        let path = format!("/documents/large/{}-{key}", self.nth);
        let status = self.send(Method::PUT, &path, Some(vec![b'x'; LARGE].into())).await?;
        self.kept = self.kept.max(u64::from(status == 201) * (key + 1));
        Ok(status)
    }

    /// Deletes what was kept.
    async fn free(&mut self) -> Result<(), AnyError> {
        for nth in 0..std::mem::take(&mut self.kept) {
            let path = format!("/documents/large/{}-{nth}", self.nth);
            self.send(Method::DELETE, &path, None).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<u16, AnyError> {
        let path = format!("/tenants/{}{path}", self.tenant);
        let (status, _body) = self.client.send(method, &path, body).await?;
        self.counts.count(&self.tenant, status.as_u16());
        Ok(status.as_u16())
    }

    /// A JSON document of 1 to 16 KiB.
    fn body(&mut self) -> Bytes {
        let rows = 16 + self.next() % 240;
        let row = |nth| {
            format!(
                "{{\"id\":{nth},\"name\":\"bread number {nth}\",\"price\":{nth}.25,\"sold\":true}}"
            )
        };
        format!("[{}]", (0..rows).map(row).collect::<Vec<_>>().join(",")).into()
    }

    /// Marsaglia's xorshift64.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 16
    }
}
