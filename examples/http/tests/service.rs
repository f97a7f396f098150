//! Requests to the router.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use http_memcg::router;
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};
use tower::ServiceExt;

struct World {
    pcpu: PerCpuAllocator,
    tenant: Memcg,
    router: Router,
}

fn world() -> World {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(1000)).unwrap();
    pcpu.root().create("other").unwrap();
    let router = router(&pcpu.root());
    World { pcpu, tenant, router }
}

impl World {
    async fn post(&self, path: &str, length: usize) -> Response {
        let request = Request::post(path).header("content-length", length);
        let request = request.body(Body::from(vec![1; length])).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }
}

async fn text(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_request_with_room_is_served_and_leaves_nothing() {
    let world = world();
    let answer = text(world.post("/tenant/length", 1000).await).await;
    assert_eq!(answer, (StatusCode::OK, "1000".into()));
    assert_eq!((world.tenant.current(), world.tenant.events().max), (0, 0));
    assert!(world.tenant.peak() >= 1000);
}

#[tokio::test]
async fn a_request_without_room_is_too_many() {
    let world = world();
    let (status, answer) = text(world.post("/tenant/length", 1001).await).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer, "cgroup /tenant refuses 1001 bytes: 0 of 1000 bytes are in use\n");
    let (status, _) = text(world.post("/other/length", 100_000).await).await;
    assert_eq!(status, StatusCode::OK, "another tenant has no limit");
    assert_eq!(world.pcpu.root().stat().charged, 0);
}

/// The handler charges more, in the cgroup that the layer entered.
#[tokio::test]
async fn an_answer_is_charged_until_it_is_dropped() {
    let world = world();
    let answer = world.post("/tenant/double", 200).await;
    assert_eq!((answer.status(), world.tenant.current()), (StatusCode::OK, 400));
    let (status, _) = text(world.post("/tenant/length", 700).await).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "while the answer is being sent");
    drop(answer);
    assert_eq!(world.tenant.current(), 0);

    let (status, refusal) = text(world.post("/tenant/double", 400).await).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{refusal}");
    assert!(refusal.contains("refuses 800 bytes: 400 of 1000"), "{refusal}");
    assert_eq!(world.tenant.current(), 0);
}

#[tokio::test]
async fn a_request_of_nobody_is_served_outside() {
    let world = world();
    let health = Request::get("/health").body(Body::empty()).unwrap();
    let (status, _) = text(world.router.clone().oneshot(health).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, length) = text(world.post("/stranger/length", 5000).await).await;
    assert_eq!((status, length.as_str()), (StatusCode::OK, "5000"));
    assert_eq!(world.pcpu.root().stat().charged, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_stay_below_the_limit_and_leave_nothing() {
    let world = world();
    let requests = (0..200).map(|_| {
        let router = world.router.clone();
        tokio::spawn(async move {
            let request = Request::post("/tenant/double").header("content-length", 100);
            let request = request.body(Body::from(vec![b'x'; 100])).unwrap();
            let (status, _) = text(router.oneshot(request).await.unwrap()).await;
            status
        })
    });
    let mut answers = [0, 0];
    for request in requests.collect::<Vec<_>>() {
        match request.await.unwrap() {
            StatusCode::OK => answers[0] += 1,
            StatusCode::TOO_MANY_REQUESTS => answers[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert!(answers[0] > 0, "{answers:?}");
    assert!(Limit::bytes(world.tenant.peak()) <= world.tenant.max());
    assert_eq!(world.tenant.current(), 0);
}
