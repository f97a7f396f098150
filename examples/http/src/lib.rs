//! An axum service whose requests are served in the cgroup of their tenant.
//!
//! The tenant is the first part of the path. What a request declares as its length is charged to it before
//! the body is read. Where the tenant has no room, the answer is 429.

#![forbid(unsafe_code)]

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use percpu_memcg::integrations::bytes::charged;
use percpu_memcg::integrations::tower::{MemcgLayer, content_length};
use percpu_memcg::{ChargeError, Memcg};

/// The service. Tenants are the cgroups below `root`.
pub fn router(root: &Memcg) -> Router {
    let tenants = root.clone();
    let pick = move |request: &Request| {
        let tenant = request.uri().path().split('/').nth(1)?;
        tenants.find(tenant).ok().filter(|tenant| !tenant.is_root())
    };
    Router::new()
        .route("/health", get(|| async { "well\n" }))
        .route("/{tenant}/length", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/{tenant}/double", post(double))
        .layer(MemcgLayer::new(pick, content_length, refused))
        .with_state(root.clone())
}

/// The answer to a request that a limit refuses.
fn refused(refusal: ChargeError) -> Response {
    // It names the tenant and no other.
    (StatusCode::TOO_MANY_REQUESTS, format!("{refusal}\n")).into_response()
}

/// Answers with the body, twice. The answer stays charged until it was sent.
async fn double(State(root): State<Memcg>, body: Bytes) -> Response {
    // This task has the cgroup from the layer.
    match root.of_this_thread().try_charge(2 * body.len() as u64) {
        Ok(charge) => Body::from(charged([&body[..], &body].concat(), charge)).into_response(),
        Err(refusal) => refused(refusal),
    }
}
