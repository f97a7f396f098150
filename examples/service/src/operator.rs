//! What operators use.
//!
//! ```text
//! PUT    /tenants/{name}?max=64M&high=48M  creates a tenant, or sets its limits
//! DELETE /tenants/{name}?wait=5            removes it, and answers what was left
//! GET    /tenants                          names
//! GET    /metrics                          OpenMetrics
//! GET    /snapshot.json                    all figures
//! GET    /history.json                     bytes in use in the last minute
//! GET    /chunks.svg                       whose each part of the per-CPU memory is
//! GET    /cgroups/…                        an interface file, or what is in a cgroup
//! PUT    /cgroups/…                        writes an interface file
//! ```

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use percpu_memcg::Limit;
use percpu_memcg::cgroup::MemcgSnapshot;
use percpu_memcg::counter::HistogramSnapshot;
use percpu_memcg::error::FileError;
use percpu_memcg::report::{ChunkMap, Sample};
use percpu_memcg::this_cpu::{ThisCpu, Tier};
use prometheus_client::encoding::text::encode;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::figures::BUCKETS;
use crate::room;
use crate::service::Service;
use crate::tenants::{Farewell, TenantError};

/// How long the removal of a tenant waits for its requests.
const WAIT: u64 = 10;

pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/tenants", get(tenants))
        .route("/tenants/{name}", put(put_tenant).delete(delete_tenant))
        .route("/metrics", get(metrics))
        .route("/snapshot.json", get(snapshot))
        .route("/history.json", get(history))
        .route("/chunks.svg", get(chunks))
        .route("/cgroups", get(root_cgroup))
        .route("/cgroups/", get(root_cgroup))
        .route("/cgroups/{*path}", get(read).put(write))
        .with_state(service)
}

async fn tenants(State(service): State<Arc<Service>>) -> Json<Vec<String>> {
    Json(service.tenants.all().iter().map(|tenant| tenant.name.clone()).collect())
}

#[derive(Deserialize)]
struct Limits {
    max: String,
    high: Option<String>,
}

async fn put_tenant(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Query(limits): Query<Limits>,
) -> Result<StatusCode, Response> {
    let limit = |text: &str| text.parse::<Limit>();
    let limits = limit(&limits.max)
        .and_then(|max| Ok((max, limits.high.as_deref().map_or(Ok(Limit::MAX), limit)?)));
    let (max, high) = limits.map_err(|error| bad_request(format!("{error}\n")))?;
    // Limits that are lowered call reclaim hooks.
    let set = spawn_blocking(move || service.tenants.set(&name, max, high));
    match set.await.expect("it does not panic") {
        Ok(true) => Ok(StatusCode::CREATED),
        Ok(false) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into_response()),
    }
}

#[derive(Deserialize)]
struct Wait {
    /// Seconds.
    wait: Option<u64>,
}

async fn delete_tenant(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Query(Wait { wait }): Query<Wait>,
) -> Result<Json<Farewell>, TenantError> {
    let time = Duration::from_secs(wait.unwrap_or(WAIT));
    // In a task of its own: a client that does not wait must not leave a tenant that never goes.
    let removal = tokio::spawn(async move { service.tenants.remove(&name, time).await });
    removal.await.expect("it does not panic").map(Json)
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &service.registry) {
        Ok(()) => {
            let of_text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, of_text)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// `/snapshot.json`.
#[derive(Serialize)]
struct Figures {
    /// Seconds since 1970.
    at: f64,
    uptime_seconds: f64,
    tier: Tier,
    possible_cpus: usize,
    charges_heap: bool,
    heap_exceeded: u64,
    #[serde(flatten)]
    cgroups: MemcgSnapshot,
    /// By path of the cgroup.
    tenants: BTreeMap<String, OfTenant>,
    chunks: percpu_memcg::placement::Stats,
}

#[derive(Serialize)]
struct OfTenant {
    name: String,
    documents: usize,
    requests_under_way: usize,
    /// Requests by status.
    answers: BTreeMap<&'static str, u64>,
    latency: HistogramSnapshot<BUCKETS, Duration>,
}

async fn snapshot(State(service): State<Arc<Service>>) -> Json<Figures> {
    let tenants = service.tenants.all().into_iter().map(|tenant| {
        let answers = tenant.figures.answers().filter(|(_, count)| *count > 0);
        let figures = OfTenant {
            name: tenant.name.clone(),
            documents: tenant.nr_documents(),
            requests_under_way: tenant.nr_requests(),
            answers: answers.map(|(answer, count)| (answer.status(), count)).collect(),
            latency: tenant.figures.latencies(),
        };
        (tenant.memcg.path(), figures)
    });
    Json(Figures {
        at: seconds(SystemTime::now()),
        uptime_seconds: service.begun.elapsed().as_secs_f64(),
        tier: ThisCpu::tier(),
        possible_cpus: service.pcpu.machine().nr_possible(),
        charges_heap: cfg!(feature = "heap"),
        heap_exceeded: room::exceeded(),
        cgroups: service.pcpu.root().snapshot(),
        tenants: tenants.collect(),
        chunks: service.pcpu.stats(),
    })
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// An element of `/history.json`.
#[derive(Serialize)]
struct Moment {
    /// Seconds since 1970.
    at: f64,
    /// Bytes in use, by path.
    current: BTreeMap<String, u64>,
}

async fn history(State(service): State<Arc<Service>>) -> Json<Vec<Moment>> {
    let moment = |sample: &Sample| Moment {
        at: seconds(sample.at),
        current: sample.cgroups.iter().map(|of| (of.path.clone(), of.current)).collect(),
    };
    Json(service.history.samples().iter().map(|sample| moment(sample)).collect())
}

async fn chunks(State(service): State<Arc<Service>>) -> Response {
    let svg = spawn_blocking(move || ChunkMap::take(&service.pcpu).to_svg()).await;
    let svg = svg.expect("it does not panic");
    let headers = [(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "no-store")];
    (headers, svg).into_response()
}

/// What is in a cgroup.
#[derive(Serialize)]
struct Directory {
    path: String,
    cgroups: Vec<String>,
    files: Vec<String>,
}

async fn root_cgroup(State(service): State<Arc<Service>>) -> Result<Response, Response> {
    directory(&service, "").map_err(of_file)
}

async fn read(
    State(service): State<Arc<Service>>,
    Path(path): Path<String>,
) -> Result<Response, Response> {
    let path = path.trim_end_matches('/');
    match service.pcpu.files().read(path) {
        Err(FileError::IsDirectory { .. }) => directory(&service, path),
        text => text.map(IntoResponse::into_response),
    }
    .map_err(of_file)
}

fn directory(service: &Service, path: &str) -> Result<Response, FileError> {
    let all = service.pcpu.files().list(path)?;
    let memcg = service.pcpu.root().find(path)?;
    let children = memcg.children();
    let (cgroups, files) =
        all.into_iter().partition(|name| children.iter().any(|child| child.name() == name));
    Ok(Json(Directory { path: memcg.path(), cgroups, files }).into_response())
}

async fn write(
    State(service): State<Arc<Service>>,
    Path(path): Path<String>,
    text: String,
) -> Result<StatusCode, Response> {
    let path = path.trim_end_matches('/').to_owned();
    let refused = match path.rsplit('/').next() {
        Some("cgroup.procs" | "cgroup.threads") => {
            Some("a write would move a thread that serves all tenants\n")
        }
        Some("cgroup.kill" | "cgroup.freeze") => {
            Some("this service has no work that it could end or freeze: remove the tenant\n")
        }
        _ => None,
    };
    if let Some(text) = refused {
        return Err((StatusCode::FORBIDDEN, text).into_response());
    }
    // It may call reclaim hooks.
    let written = spawn_blocking(move || service.pcpu.files().write(&path, &text));
    match written.await {
        Ok(written) => written.map(|_| StatusCode::NO_CONTENT).map_err(of_file),
        Err(_) => Err((StatusCode::INTERNAL_SERVER_ERROR, "a callback panicked\n").into_response()),
    }
}

fn of_file(error: FileError) -> Response {
    let text = format!("{error}\n");
    let status = match std::io::Error::from(error).kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => StatusCode::NOT_FOUND,
        ErrorKind::PermissionDenied => StatusCode::METHOD_NOT_ALLOWED,
        ErrorKind::ResourceBusy | ErrorKind::WouldBlock => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, text).into_response()
}

fn bad_request(text: String) -> Response {
    (StatusCode::BAD_REQUEST, text).into_response()
}
