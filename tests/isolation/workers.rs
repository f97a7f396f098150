//! "Inside of a hook" belongs to a tree, and can be handed to a thread that works for the hook.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use percpu_memcg::cgroup::{HookScope, OomAnswer, ReclaimRequest};
use percpu_memcg::{Charge, Memcg};

use crate::{KIB, MIB, PATIENCE, SLACK, tenants, within};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does what it is sent.
fn worker() -> mpsc::Sender<Job> {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::spawn(move || queue.into_iter().for_each(|job| job()));
    jobs
}

/// Has the worker do it, and waits for that.
fn on<T: Send + 'static>(
    worker: &mpsc::Sender<Job>,
    run: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, result) = mpsc::channel();
    worker.send(Box::new(move || done.send(run()).unwrap())).unwrap();
    result.recv().unwrap()
}

fn has_room_beyond_the_limit(tenant: &Memcg) -> bool {
    tenant.charge(2 * MIB).is_ok()
}

#[test]
fn a_worker_of_a_hook_charges_as_the_hook_does() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let (jobs, was_charged) = (Mutex::new(worker()), Arc::new(AtomicU32::new(0)));
    let cache = Arc::new(Mutex::new(Some(tenant.charge(MIB).unwrap())));
    let _hook = tenant.on_reclaim(0, {
        let (tenant, count) = (tenant.clone(), Arc::clone(&was_charged));
        move |request| {
            let (request, tenant, cache) = (request.clone(), tenant.clone(), Arc::clone(&cache));
            let count = Arc::clone(&count);
            on(&jobs.lock(), move || {
                let _scope = request.enter();
                count.fetch_add(u32::from(has_room_beyond_the_limit(&tenant)), Ordering::Relaxed);
                assert!(tenant.reclaim(1).is_err(), "and nothing is reclaimed");
                let freed = cache.lock().take();
                freed.map_or(0, |charge| charge.bytes())
            })
        }
    });
    let charge = within(PATIENCE, {
        let tenant = tenant.clone();
        move || tenant.charge(KIB)
    });
    assert_eq!((charge.unwrap().bytes(), was_charged.load(Ordering::Relaxed)), (KIB, 1));
}

#[test]
fn a_worker_of_an_oom_callback_charges_as_well() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let jobs = Mutex::new(worker());
    let work = Arc::new(Mutex::new(Some(tenant.charge(MIB).unwrap())));
    let _callback = tenant.on_oom({
        let tenant = tenant.clone();
        move |event| {
            let (event, tenant, work) = (event.clone(), tenant.clone(), Arc::clone(&work));
            on(&jobs.lock(), move || {
                let _scope = event.enter();
                let _log = tenant.charge(MIB).expect("never refused");
                work.lock().take().is_some()
            })
        }
    });
    let tenant = tenant.clone();
    assert!(within(PATIENCE, move || tenant.charge(1)).is_ok());
}

/// Without a scope, its charge waits for the hook that waits for it. It is refused.
#[test]
fn a_worker_that_nobody_told_is_refused_in_the_end() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let jobs = Mutex::new(worker());
    let _all = tenant.charge(MIB).unwrap();
    let _hook = tenant.on_reclaim(0, {
        let tenant = tenant.clone();
        move |_| {
            let tenant = tenant.clone();
            on(&jobs.lock(), move || assert!(tenant.charge(1).is_err()));
            0
        }
    });
    assert!(within(PATIENCE + SLACK, move || tenant.charge(1)).is_err());
}

/// What a hook has lent ends with it. Nobody keeps a way past the limits.
#[test]
fn a_scope_has_no_effect_after_the_hook() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let kept = Arc::new(Mutex::new(None::<ReclaimRequest>));
    let _all = tenant.charge(MIB).unwrap();
    let keeps = Arc::clone(&kept);
    let hook = tenant.on_reclaim(0, move |request| {
        *keeps.lock() = Some(request.clone());
        0
    });
    assert!(tenant.charge(1).is_err());
    let request = kept.lock().take().unwrap();
    let scope = request.enter();
    assert!(tenant.charge(1).is_err());
    assert_eq!(
        kept.lock().take().map(|request| request.bytes > 0),
        Some(true),
        "it was asked again"
    );
    drop((hook, scope));

    // Nor does it after a hook that panicked.
    let keeps = Arc::clone(&kept);
    let _hook = tenant.on_reclaim(0, move |request| {
        *keeps.lock() = Some(request.clone());
        panic!("a hook");
    });
    let charge = || tenant.charge(1);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(charge)).is_err());
    let request = kept.lock().take().unwrap();
    let _scope: HookScope = request.enter();
    assert!(tenant.try_charge(1).is_err());
}

/// A scope in a thread that outlives the hook: its charges obey limits from then on.
#[test]
fn a_worker_that_goes_on_after_the_hook_obeys_limits_again() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let _all = tenant.charge(MIB).unwrap();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let (report, reported) = mpsc::channel();
    let job = Mutex::new(Some((may_go_on, report)));
    let hook = tenant.on_reclaim(0, {
        let tenant = tenant.clone();
        move |request| {
            let Some((may_go_on, report)) = job.lock().take() else { return 0 };
            let (request, tenant, (entered, has_entered)) =
                (request.clone(), tenant.clone(), mpsc::channel());
            thread::spawn(move || {
                let _scope = request.enter();
                entered.send(tenant.try_charge(1).is_ok()).unwrap();
                may_go_on.recv().unwrap();
                report.send(tenant.try_charge(1).is_ok()).unwrap();
            });
            assert!(has_entered.recv().unwrap());
            0
        }
    });
    assert!(tenant.charge(1).is_err());
    go_on.send(()).unwrap();
    assert!(!reported.recv().unwrap());
    drop(hook);
}

/// A hook of one tree that charges in another one is an ordinary caller there.
#[test]
fn inside_of_hook_of_one_tree_another_tree_has_limits_and_hooks() {
    let (_one, [tenant]) = tenants(["tenant"]);
    let (_two, [pool]) = tenants(["pool"]);
    let _all = tenant.charge(MIB).unwrap();
    let cached = Arc::new(Mutex::new(Some(pool.charge(MIB).unwrap())));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let _pool_hook = pool.on_reclaim(0, {
        let (tenant, cached, seen) = (tenant.clone(), Arc::clone(&cached), Arc::clone(&seen));
        move |_| {
            // Inside of hooks of both trees.
            seen.lock().push(("back in the first tree", tenant.charge(1).is_ok()));
            let freed = cached.lock().take();
            freed.map_or(0, |charge| charge.bytes())
        }
    });
    let _hook = tenant.on_reclaim(0, {
        let (pool, seen) = (pool.clone(), Arc::clone(&seen));
        move |_| {
            let buffer: Option<Charge> = pool.charge(KIB).ok();
            seen.lock().push(("the other tree's hook made room", buffer.is_some()));
            let too_much = pool.try_charge(MIB).is_ok();
            seen.lock().push(("the other tree's limit was ignored", too_much));
            0
        }
    });
    assert!(tenant.charge(1).is_err());
    let expected = [
        ("back in the first tree", true),
        ("the other tree's hook made room", true),
        ("the other tree's limit was ignored", false),
    ];
    assert_eq!(*seen.lock(), expected);
}

/// Two trees whose hooks charge in each other, on two threads: neither waits for ever.
#[test]
fn hooks_of_two_trees_that_need_each_other_end() {
    let (_one, [a]) = tenants(["a"]);
    let (_two, [b]) = tenants(["b"]);
    let _full = [&a, &b].map(|tenant| tenant.charge(MIB).unwrap());
    let start = Arc::new(std::sync::Barrier::new(2));
    let _hooks = [(&a, &b), (&b, &a)].map(|(from, to)| {
        let (to, start, first) = (to.clone(), Arc::clone(&start), Mutex::new(true));
        from.on_reclaim(0, move |_| {
            if std::mem::take(&mut *first.lock()) {
                start.wait();
            }
            let _it_may_be_inside_of_both = to.charge(1);
            0
        })
    });
    let threads = [a, b].map(|tenant| {
        thread::spawn(move || within(2 * (PATIENCE + SLACK), move || tenant.charge(1).is_err()))
    });
    threads.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
}

/// A callback that says that its worker needs time.
#[test]
fn a_charge_waits_for_a_worker_that_needs_time() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let work = Arc::new(Mutex::new(Some(tenant.charge(MIB).unwrap())));
    let _callback = tenant.on_oom(move |_| {
        let Some(work) = work.lock().take() else { return OomAnswer::Refuse };
        thread::spawn(move || {
            thread::sleep(std::time::Duration::from_millis(200));
            drop(work);
        });
        OomAnswer::Later(PATIENCE)
    });
    let begin = std::time::Instant::now();
    let charge = tenant.charge(KIB);
    assert!(charge.is_ok());
    let waited = begin.elapsed().as_millis();
    assert!((200..3000).contains(&waited), "{waited} ms");
    assert_eq!((tenant.events().max, tenant.events().oom), (1, 1));
}

/// A worker of a `high` callback charges as the callback does.
#[test]
fn a_worker_of_a_high_callback_calls_no_callback() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    tenant.set_high(percpu_memcg::Limit::bytes(KIB)).unwrap();
    let (jobs, calls) = (Mutex::new(worker()), Arc::new(AtomicU32::new(0)));
    let _callback = tenant.on_high({
        let calls = Arc::clone(&calls);
        move |event| {
            calls.fetch_add(1, Ordering::Relaxed);
            let event = event.clone();
            on(&jobs.lock(), move || {
                let _scope = event.enter();
                drop(event.memcg.charge(10).unwrap());
                // It is no hook: limits hold.
                assert!(event.memcg.charge_with(2 * MIB, percpu_memcg::Gfp::NOWAIT).is_err());
            });
        }
    });
    let charged = within(PATIENCE, {
        let tenant = tenant.clone();
        move || tenant.charge(2 * KIB)
    });
    assert_eq!((charged.unwrap().bytes(), calls.load(Ordering::Relaxed)), (2 * KIB, 1));
}

/// A worker that keeps its scopes, or forgets them.
#[test]
fn scopes_that_are_over_take_no_place() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let _all = tenant.charge(MIB).unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let _hook = tenant.on_reclaim(0, {
        let (asked, memcg) = (Arc::clone(&asked), tenant.clone());
        let jobs = Mutex::new(worker());
        move |request| {
            let (request, memcg) = (request.clone(), memcg.clone());
            let charges = on(&jobs.lock(), move || {
                std::mem::forget(request.enter());
                let again = request.enter();
                let charges = has_room_beyond_the_limit(&memcg);
                drop(again);
                charges && has_room_beyond_the_limit(&memcg)
            });
            asked.fetch_add(u32::from(charges), Ordering::Relaxed);
            0
        }
    });
    for _ in 0..10 {
        assert!(tenant.charge(KIB).is_err());
    }
    assert_eq!(asked.load(Ordering::Relaxed), 10);
}

/// A turn that was kept for long makes no thread call the hook that waits for it.
#[test]
fn a_worker_that_nobody_told_is_not_asked_itself() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let jobs = Mutex::new(worker());
    let _all = tenant.charge(MIB).unwrap();
    let was_slow = AtomicBool::new(false);
    let _slow = tenant.on_reclaim(0, move |_| {
        if !was_slow.swap(true, Ordering::SeqCst) {
            thread::sleep(PATIENCE + Duration::from_millis(300));
        }
        0
    });
    let _hook = tenant.on_reclaim(1, {
        let tenant = tenant.clone();
        move |_| {
            let tenant = tenant.clone();
            on(&jobs.lock(), move || assert!(tenant.charge(1).is_err()));
            0
        }
    });
    let tenant = tenant.clone();
    assert!(within(PATIENCE + SLACK, move || tenant.charge(1)).is_err());
}
