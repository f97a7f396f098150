//! What tenants use.
//!
//! ```text
//! GET    /tenants/{name}                  the tenant's own figures
//! PUT    /tenants/{name}/documents/{key}  keeps the body
//! GET    /tenants/{name}/documents/{key}
//! DELETE /tenants/{name}/documents/{key}
//! POST   /tenants/{name}/summary          of a JSON body
//! ```
//!
//! A request below a tenant is admitted, counted when it was answered, and runs in the tenant's cgroup. What
//! it charges or allocates is the tenant's, on whatever thread.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use percpu_memcg::integrations::tower::MemcgLayer;
use serde::Deserialize;
use serde_json::json;

use crate::body::{self, BodyError};
use crate::figures::Operation;
use crate::room::Room;
use crate::service::Service;
use crate::summary::{SummaryError, summary};
use crate::tenants::{Admitted, Document, TenantError};

/// A body of more bytes is worked on outside of the threads that serve others.
const LONG_WORK: usize = 64 << 10;

pub fn router(service: Arc<Service>) -> Router {
    let in_cgroup = MemcgLayer::new(
        |request: &Request| Some(request.extensions().get::<Admitted>()?.tenant.memcg.clone()),
        // Bodies are charged when they are read: see `body`.
        |_request| 0,
        |refusal| (StatusCode::TOO_MANY_REQUESTS, format!("{refusal}\n")).into_response(),
    );
    Router::new()
        .route("/tenants/{name}/documents/{*key}", get(get_document).put(put).delete(delete))
        .route("/tenants/{name}/summary", post(post_summary))
        .route_layer(in_cgroup)
        .route_layer(from_fn_with_state(Arc::clone(&service), admit))
        .route("/tenants/{name}", get(get_tenant))
        .with_state(service)
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Keyed {
    key: String,
}

/// Admits the request, and counts it.
async fn admit(
    State(service): State<Arc<Service>>,
    Path(Named { name }): Path<Named>,
    mut request: Request,
    next: Next,
) -> Result<Response, TenantError> {
    let begun = Instant::now();
    let admitted = service.tenants.admit(&name)?;
    let operation = Operation::of(request.method());
    request.extensions_mut().insert(admitted.clone());
    let response = next.run(request).await;
    admitted.tenant.figures.count(operation, response.status(), begun.elapsed());
    Ok(response)
}

async fn get_tenant(
    State(service): State<Arc<Service>>,
    Path(Named { name }): Path<Named>,
) -> Result<Response, TenantError> {
    let tenant = service.tenants.find(&name)?;
    let figures = json!({
        "name": tenant.name,
        "current": tenant.memcg.current(),
        "peak": tenant.memcg.peak(),
        "max": tenant.memcg.max(),
        "high": tenant.memcg.high(),
        "documents": tenant.nr_documents(),
    });
    Ok(Json(figures).into_response())
}

async fn put(
    Extension(Admitted { tenant, .. }): Extension<Admitted>,
    Path(Keyed { key }): Path<Keyed>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, BodyError> {
    // Above `high`, for a moment, so that what frees memory comes first.
    tenant.memcg.throttled().await;
    let room = Room::new(&tenant.memcg, "documents").map_err(BodyError::NoRoom)?;
    let bytes = body::read(&headers, body, &room).await?;
    let document = Document::new(&key, bytes, room).map_err(BodyError::NoRoom)?;
    let is_new = tenant.put(key, document);
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::NO_CONTENT })
}

async fn get_document(
    Extension(admitted): Extension<Admitted>,
    Path(Keyed { key }): Path<Keyed>,
) -> Response {
    /// What is being sent stays charged, and its tenant waits for it.
    struct Sent(Arc<Document>, #[expect(dead_code, reason = "dropped when it was sent")] Admitted);

    impl AsRef<[u8]> for Sent {
        fn as_ref(&self) -> &[u8] {
            (*self.0).as_ref()
        }
    }

    match admitted.tenant.get(&key) {
        Some(document) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                // Tenants store what they like: it is not to be run by a browser.
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (headers, Bytes::from_owner(Sent(document, admitted))).into_response()
        }
        None => no_document(),
    }
}

async fn delete(
    Extension(Admitted { tenant, .. }): Extension<Admitted>,
    Path(Keyed { key }): Path<Keyed>,
) -> Response {
    match tenant.delete(&key) {
        Some(_document) => StatusCode::NO_CONTENT.into_response(),
        None => no_document(),
    }
}

fn no_document() -> Response {
    (StatusCode::NOT_FOUND, "there is no such document\n").into_response()
}

async fn post_summary(
    Extension(admitted): Extension<Admitted>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, BodyError> {
    let memcg = admitted.tenant.memcg.clone();
    let room = Room::new(&memcg, "requests").map_err(BodyError::NoRoom)?;
    let text = body::read(&headers, body, &room).await?;
    let is_short = text.len() <= LONG_WORK;
    let work = move || {
        let summary = summary(&text, &room);
        // All of a request's memory is freed before its room.
        drop(text);
        summary
    };
    let summary = if is_short {
        work()
    } else {
        // The other thread is in no cgroup by itself. The tenant waits for it, whether the client does or not.
        let work = move || {
            let _admitted = admitted;
            memcg.scope(work)
        };
        tokio::task::spawn_blocking(work).await.expect("the summary does not panic")
    };
    Ok(match summary {
        Ok(summary) => Json(summary).into_response(),
        Err(SummaryError::NoRoom(no_room)) => no_room.into_response(),
        Err(SummaryError::Malformed(error)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")).into_response()
        }
    })
}

impl IntoResponse for TenantError {
    fn into_response(self) -> Response {
        match self {
            TenantError::Unknown => {
                (StatusCode::NOT_FOUND, "there is no such tenant\n").into_response()
            }
            TenantError::Leaving => {
                (StatusCode::GONE, "the tenant is being removed\n").into_response()
            }
            TenantError::Tree(error) if error.is_invalid() => {
                (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()
            }
            TenantError::Tree(error) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
            }
            TenantError::Figures(error) => {
                let text = format!("no room for the tenant's own figures: {error}\n");
                (StatusCode::UNPROCESSABLE_ENTITY, text).into_response()
            }
        }
    }
}
