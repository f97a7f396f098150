//! A layer that serves each request in a cgroup, or refuses it (feature `tower`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tower_layer::Layer;
use ::tower_service::Service;
use pin_project_lite::pin_project;

use crate::cgroup::{InMemcg, InMemcgFuture};
use crate::{Charge, ChargeError, Gfp, Memcg};

/// Serves each request in the cgroup of its tenant, and answers by itself where that has no room.
///
/// Three functions say what to do, in the order of the arguments of [`new`](MemcgLayer::new):
///
/// 1. `pick` finds the cgroup of a request. A request for which it finds none is served as without the layer.
/// 2. `bytes` says what the request will need, for example [`content_length`]. So much is charged before the
///    service sees the request, and uncharged when its response is ready. `|_| 0` is never refused.
/// 3. `answer` is called instead of the service when a limit refuses that charge, and returns the response:
///    429 or 503 in HTTP. Where [`requested`](crate::cgroup::Refusal::requested) is more than
///    [`max`](crate::cgroup::Refusal::max), no wait will help: that is 413.
///    The body of the refused request is dropped unread. Over HTTP/1 a server then closes the connection,
///    and a client that is still sending may not read the answer.
///
/// The service and its future run within the cgroup, on whatever thread, as a future
/// [in a cgroup](InMemcg::in_memcg) does. The body of a response that is produced while it is sent does not:
/// it charges by itself what it holds, or carries a charge (`bytes::charged`, with the feature `bytes`).
///
/// The layer charges as [`try_charge`](Memcg::try_charge) does, because it runs on a thread of an executor:
/// reclaim hooks are not called. See [`gfp`](MemcgLayer::gfp).
///
/// # Numbers that strangers send
///
/// A declared length is a number, which may be anything, and a body that is sent in chunks declares none. So give each
/// tenant a [`max`](Memcg::set_max), which a number that is too large does not pass. And bound bodies as
/// without this layer.
///
/// # Examples
///
/// ```
/// use http::{Request, Response, StatusCode};
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use percpu_memcg::integrations::tower::{MemcgLayer, content_length};
/// use std::convert::Infallible;
/// use tower_layer::Layer;
/// use tower_service::Service;
///
/// #[derive(Clone)]
/// struct Upload;
///
/// impl Service<Request<Vec<u8>>> for Upload {
///     type Response = Response<String>;
///     type Error = Infallible;
///     type Future = std::future::Ready<Result<Response<String>, Infallible>>;
///
///     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
///         std::task::Poll::Ready(Ok(()))
///     }
///
///     fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
///         std::future::ready(Ok(Response::new(format!("{} bytes", request.body().len()))))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pcpu = PerCpuAllocator::new()?;
/// let root = pcpu.root();
/// root.create("a")?.set_max(Limit::bytes(1000))?;
///
/// let layer = MemcgLayer::new(
///     move |request: &Request<Vec<u8>>| root.find(request.uri().path().trim_start_matches('/')).ok(),
///     content_length,
///     |refusal| {
///         let mut response = Response::new(refusal.to_string());
///         *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
///         response
///     },
/// );
/// let mut upload = layer.layer(Upload);
/// let request = |length: usize| {
///     let request = Request::post("/a").header("content-length", length);
///     request.body(vec![0; length]).unwrap()
/// };
/// assert_eq!(upload.call(request(1000)).await?.status(), StatusCode::OK);
/// let refused = upload.call(request(1001)).await?;
/// assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
/// assert_eq!(refused.body(), "cgroup /a refuses 1001 bytes: 0 of 1000 bytes are in use");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemcgLayer<P, B, A> {
    pick: P,
    bytes: B,
    answer: A,
    gfp: Gfp,
}

impl<P, B, A> MemcgLayer<P, B, A> {
    /// A layer of three functions, which the [type](MemcgLayer) describes.
    pub fn new<Request, Response>(pick: P, bytes: B, answer: A) -> Self
    where
        P: Fn(&Request) -> Option<Memcg>,
        B: Fn(&Request) -> u64,
        A: Fn(ChargeError) -> Response,
    {
        MemcgLayer { pick, bytes, answer, gfp: Gfp::NOWAIT }
    }

    /// Charges with other flags. With [`Gfp::KERNEL`], reclaim hooks make room before a request is refused,
    /// on the thread that serves it, which waits for them.
    pub fn gfp(self, gfp: Gfp) -> Self {
        MemcgLayer { gfp, ..self }
    }
}

impl<S, P: Clone, B: Clone, A: Clone> Layer<S> for MemcgLayer<P, B, A> {
    type Service = MemcgService<S, P, B, A>;

    fn layer(&self, inner: S) -> Self::Service {
        MemcgService { inner, layer: self.clone() }
    }
}

/// The service that a [`MemcgLayer`] wraps around another one.
#[derive(Clone)]
pub struct MemcgService<S, P, B, A> {
    inner: S,
    layer: MemcgLayer<P, B, A>,
}

impl<Request, S, P, B, A> Service<Request> for MemcgService<S, P, B, A>
where
    S: Service<Request>,
    P: Fn(&Request) -> Option<Memcg>,
    B: Fn(&Request) -> u64,
    A: Fn(ChargeError) -> S::Response,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MemcgResponse<S::Future, S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let MemcgLayer { pick, bytes, answer, gfp } = &self.layer;
        let state = match pick(&request) {
            None => State::Outside { future: self.inner.call(request) },
            Some(memcg) => match memcg.charge_with(bytes(&request), *gfp) {
                Ok(charge) => {
                    let future = memcg.scope(|| self.inner.call(request)).in_memcg(&memcg);
                    State::Inside { future, charge: Some(charge) }
                }
                Err(refusal) => State::Refused { response: Some(answer(refusal)) },
            },
        };
        MemcgResponse { state }
    }
}

pin_project! {
    /// The future of a [`MemcgService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct MemcgResponse<F, R> {
        #[pin]
        state: State<F, R>,
    }
}

pin_project! {
    #[project = StateOfPinned]
    enum State<F, R> {
        /// In no cgroup.
        Outside { #[pin] future: F },
        Inside {
            #[pin]
            future: InMemcgFuture<F>,
            // None when the response was returned.
            charge: Option<Charge>,
        },
        Refused { response: Option<R> },
    }
}

impl<F: Future<Output = Result<R, E>>, R, E> Future for MemcgResponse<F, R> {
    type Output = Result<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R, E>> {
        match self.project().state.project() {
            StateOfPinned::Outside { future } => future.poll(cx),
            StateOfPinned::Inside { future, charge } => {
                let response = ready!(future.poll(cx));
                *charge = None;
                Poll::Ready(response)
            }
            StateOfPinned::Refused { response } => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it is ready")))
            }
        }
    }
}

/// The length that a request declares in its header `Content-Length`; 0 without one.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use percpu_memcg::integrations::tower::content_length;
///
/// let request = Request::post("/").header("content-length", 12).body(()).unwrap();
/// assert_eq!(content_length(&request), 12);
/// assert_eq!(content_length(&Request::new(())), 0);
/// ```
pub fn content_length<B>(request: &http::Request<B>) -> u64 {
    let declared = request.headers().get(http::header::CONTENT_LENGTH);
    // What is no number, or one beyond 64 bits, is too much.
    declared
        .map_or(0, |length| length.to_str().ok().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX))
}

impl<P, B, A> fmt::Debug for MemcgLayer<P, B, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcgLayer").field("gfp", &self.gfp).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, P, B, A> fmt::Debug for MemcgService<S, P, B, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcgService")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

impl<F, R> fmt::Debug for MemcgResponse<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("MemcgResponse");
        match &self.state {
            State::Outside { .. } => &mut debug,
            State::Inside { charge, .. } => debug.field("charge", charge),
            State::Refused { .. } => debug.field("refused", &true),
        };
        debug.finish_non_exhaustive()
    }
}
