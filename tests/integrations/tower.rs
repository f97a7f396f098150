//! Requests in cgroups.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use http::{Request, StatusCode};
use percpu_memcg::integrations::tower::{MemcgLayer, content_length};
use percpu_memcg::{ChargeError, Gfp, Limit, Memcg, PerCpuAllocator};
use tower_layer::Layer;
use tower_service::Service;

/// Not HTTP: a tenant, the bytes that are declared, and what the service does with them.
#[derive(Clone, Copy)]
struct Job {
    tenant: &'static str,
    declared: u64,
    charges: u64,
}

#[derive(Debug, PartialEq)]
enum Answer {
    /// The cgroup that paid for what the service charged.
    Done(String),
    Refused(String),
}

/// Charges while it is called, and again in its future, after another poll.
#[derive(Clone)]
struct Work {
    root: Memcg,
    calls: Arc<AtomicUsize>,
}

impl Service<Job> for Work {
    type Response = Answer;
    type Error = ChargeError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, ChargeError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ChargeError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, job: Job) -> Self::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let root = self.root.clone();
        let in_call = root.of_this_thread().path();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let charge = root.charge_current(job.charges)?;
            assert_eq!(charge.cgroup(), in_call);
            Ok(Answer::Done(in_call))
        })
    }
}

struct World {
    root: Memcg,
    a: Memcg,
    work: Work,
    _pcpu: PerCpuAllocator,
}

fn world() -> World {
    let pcpu = PerCpuAllocator::new().unwrap();
    let root = pcpu.root();
    let a = root.create("a").unwrap();
    a.set_max(Limit::bytes(1000)).unwrap();
    root.create("b").unwrap();
    let work = Work { root: root.clone(), calls: Arc::default() };
    World { root, a, work, _pcpu: pcpu }
}

impl World {
    fn service(
        &self,
        gfp: Gfp,
    ) -> impl Service<Job, Response = Answer, Error = ChargeError, Future: Send> + Clone + use<>
    {
        let root = self.root.clone();
        let pick = move |job: &Job| root.find(job.tenant).ok();
        let answer = |refusal: ChargeError| Answer::Refused(refusal.cgroup.clone());
        MemcgLayer::new(pick, |job: &Job| job.declared, answer).gfp(gfp).layer(self.work.clone())
    }
}

fn job(tenant: &'static str, declared: u64, charges: u64) -> Job {
    Job { tenant, declared, charges }
}

fn done(path: &str) -> Answer {
    Answer::Done(path.into())
}

/// A poll, on this thread.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn requests_are_served_in_the_cgroup_that_was_picked() {
    let world = world();
    let service = world.service(Gfp::NOWAIT);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let jobs = (0..200).map(|index| {
        let mut service = service.clone();
        let (tenant, path) = [("a", "/a"), ("b", "/b"), ("nobody", "/")][index % 3];
        // Ten of them fit at the same time at least.
        let served = runtime.spawn(service.call(job(tenant, 3, 5)));
        (served, path)
    });
    for (served, path) in jobs.collect::<Vec<_>>() {
        let answer = runtime.block_on(served).unwrap().unwrap();
        assert_eq!(answer, done(path));
    }
    assert_eq!((world.a.current(), world.root.stat().charged), (0, 0));
}

#[test]
fn a_request_without_room_is_answered_and_does_not_reach_the_service() {
    let world = world();
    let mut service = world.service(Gfp::NOWAIT);
    let mut first = Box::pin(service.call(job("a", 600, 0)));
    assert!(poll_once(first.as_mut()).is_pending());
    assert_eq!(world.a.current(), 600, "charged before it is served, and while it is");

    let refused = pin!(service.call(job("a", 401, 0)));
    assert_eq!(poll_once(refused), Poll::Ready(Ok(Answer::Refused("/a".into()))));
    assert_eq!(world.work.calls.load(Ordering::Relaxed), 1);
    assert_eq!(world.a.events().max, 1);

    assert_eq!(poll_once(first.as_mut()), Poll::Ready(Ok(done("/a"))));
    assert_eq!(world.a.current(), 0, "when the response is ready, though the future lives");
    let mut third = pin!(service.call(job("a", 401, 0)));
    assert!(poll_once(third.as_mut()).is_pending());
    assert_eq!(poll_once(third), Poll::Ready(Ok(done("/a"))));
}

#[test]
fn what_the_service_returns_is_returned_and_uncharged() {
    let world = world();
    let mut service = world.service(Gfp::NOWAIT);
    let mut failing = pin!(service.call(job("a", 600, 500)));
    assert!(poll_once(failing.as_mut()).is_pending());
    let Poll::Ready(Err(error)) = poll_once(failing.as_mut()) else { panic!("it has no room") };
    assert_eq!((error.requested, error.usage), (500, 600));
    assert_eq!(world.a.current(), 0);
}

#[test]
fn a_future_that_is_dropped_or_panics_is_uncharged() {
    let world = world();
    let mut service = world.service(Gfp::NOWAIT);
    let mut cancelled = Box::pin(service.call(job("a", 600, 0)));
    assert!(poll_once(cancelled.as_mut()).is_pending());
    drop(cancelled);
    assert_eq!(world.a.current(), 0);
    drop(service.call(job("a", 600, 0)));
    assert_eq!(world.a.current(), 0, "never polled");

    #[derive(Clone)]
    struct Panics;
    impl Service<Job> for Panics {
        type Response = Answer;
        type Error = Infallible;
        type Future = Ready<Result<Answer, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Job) -> Self::Future {
            panic!("of a handler")
        }
    }
    let a = world.a.clone();
    let layer = MemcgLayer::new(
        move |_: &Job| Some(a.clone()),
        |job: &Job| job.declared,
        |_| Answer::Refused(String::new()),
    );
    let mut panics = layer.layer(Panics);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(panics.call(job("a", 600, 0))))).is_err());
    assert_eq!(world.a.current(), 0);
    assert_eq!(world.root.of_this_thread(), world.root, "the scope was left");
}

/// A cache of the tenant gives room to a layer that may wait for it, and to no other.
#[test]
fn hooks_run_if_the_layer_may_wait_for_them() {
    let world = world();
    let cached = std::sync::Mutex::new(Some(world.a.charge(900).unwrap()));
    let _hook = world
        .a
        .on_reclaim(0, move |_| cached.lock().unwrap().take().map_or(0, |cached| cached.bytes()));
    let request = job("a", 500, 0);
    let refused = pin!(world.service(Gfp::NOWAIT).call(request));
    assert_eq!(poll_once(refused), Poll::Ready(Ok(Answer::Refused("/a".into()))));
    assert_eq!(world.a.current(), 900);

    let mut served = pin!(world.service(Gfp::KERNEL).call(request));
    assert!(poll_once(served.as_mut()).is_pending());
    assert_eq!(world.a.current(), 500);
    assert_eq!(poll_once(served), Poll::Ready(Ok(done("/a"))));
}

#[test]
fn a_tenant_that_is_removed_while_it_is_served_leaves_nothing() {
    let world = world();
    let mut service = world.service(Gfp::NOWAIT);
    let mut served = Box::pin(service.call(job("a", 600, 0)));
    assert!(poll_once(served.as_mut()).is_pending());
    world.a.remove().unwrap();
    let mut late = pin!(service.call(job("a", 600, 0)));
    assert!(poll_once(late.as_mut()).is_pending());
    assert_eq!(poll_once(late), Poll::Ready(Ok(done("/"))), "nobody is picked any more");
    drop(served);
    assert_eq!(world.root.stat().charged, 0);
}

#[test]
fn declared_lengths_may_be_anything() {
    let length = |value: &str| {
        content_length(&Request::builder().header("content-length", value).body(()).unwrap())
    };
    assert_eq!(content_length(&Request::new("a body of chunks")), 0);
    assert_eq!((length("0"), length("12"), length("007")), (0, 12, 7));
    assert_eq!(length(&u64::MAX.to_string()), u64::MAX);
    for strange in ["99999999999999999999", "-1", "", "1 MiB", "12, 12", "0x10"] {
        assert_eq!(length(strange), u64::MAX, "{strange:?} is too much for any limit");
    }
}

#[test]
fn a_length_that_no_counter_holds_is_refused_and_hurts_nobody() {
    let world = world();
    let root = world.root.clone();
    let layer = MemcgLayer::new(
        move |_: &Request<()>| root.find("a").ok(),
        content_length,
        |refusal: ChargeError| match refusal.max {
            max if Limit::bytes(refusal.requested) > max => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::TOO_MANY_REQUESTS,
        },
    );
    #[derive(Clone)]
    struct Accepts;
    impl Service<Request<()>> for Accepts {
        type Response = StatusCode;
        type Error = Infallible;
        type Future = Ready<Result<StatusCode, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            ready(Ok(StatusCode::OK))
        }
    }
    let mut service = layer.layer(Accepts);
    let mut send = |length: u64| {
        let request = Request::builder().header("content-length", length).body(()).unwrap();
        let Poll::Ready(Ok(status)) = poll_once(pin!(service.call(request))) else { panic!() };
        status
    };
    assert_eq!(send(u64::MAX), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send(1000), StatusCode::OK);
    let _held = world.a.charge(1).unwrap();
    assert_eq!(send(1000), StatusCode::TOO_MANY_REQUESTS);
}
