//! Pools of constructed objects: charges, resets, bounds, and that each value is dropped once.

#[path = "../common/cpu.rs"]
mod cpu;
mod panics;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::machine::CpuId;
use percpu_memcg::objects::Pooled;
use percpu_memcg::{Limit, Local, Machine, Memcg, PerCpu, PerCpuAllocator, PerCpuPool};

use cpu::on_cpu;

const CPUS: usize = 4;

/// What an object costs.
const fn cost_of<T>() -> u64 {
    (size_of::<T>() * CPUS + 2 * size_of::<T>()) as u64
}

const COST: u64 = cost_of::<AtomicU64>();

fn allocator() -> PerCpuAllocator {
    PerCpuAllocator::builder().machine(Machine::uniform(CPUS).unwrap()).build().unwrap()
}

/// An allocator, and cgroups below its root.
fn cgroups<const N: usize>(names: [&str; N]) -> (PerCpuAllocator, [Memcg; N]) {
    let pcpu = allocator();
    let cgroups = names.map(|name| pcpu.root().create(name).unwrap());
    (pcpu, cgroups)
}

fn plain(memcg: &Memcg) -> PerCpuPool<AtomicU64> {
    PerCpuPool::new_for(memcg, |_| AtomicU64::new(0), |_| ()).unwrap()
}

/// Tells objects apart.
fn address<T>(object: &PerCpu<T>) -> usize {
    std::ptr::from_ref(object.get(CpuId::new(0)).unwrap()).addr()
}

/// Leaves so many idle objects, half of them on each of two CPUs.
fn fill<T: Send>(pool: &PerCpuPool<T>, memcg: &Memcg, count: usize) {
    let halves: Vec<_> = (0..2)
        .map(|cpu| {
            on_cpu(cpu, || (0..count / 2).map(|_| pool.take(memcg).unwrap()).collect::<Vec<_>>())
        })
        .collect();
    for (cpu, half) in halves.into_iter().enumerate() {
        on_cpu(cpu, || drop(half));
    }
    assert_eq!(pool.idle(), count);
}

/// Values that are alive, and a value that counts.
#[derive(Clone, Debug, Default)]
struct Alive(Arc<AtomicI64>);

#[derive(Debug)]
struct Value {
    alive: Alive,
    is_dropped: AtomicBool,
    panics: bool,
}

impl Alive {
    fn value(&self) -> Value {
        self.value_that(false)
    }

    fn value_that(&self, panics: bool) -> Value {
        self.0.fetch_add(1, Ordering::Relaxed);
        Value { alive: self.clone(), is_dropped: AtomicBool::new(false), panics }
    }

    fn count(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn objects(&self) -> i64 {
        assert_eq!(self.count() % CPUS as i64, 0);
        self.count() / CPUS as i64
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        assert!(!self.is_dropped.swap(true, Ordering::Relaxed));
        self.alive.0.fetch_sub(1, Ordering::Relaxed);
        assert!(!self.panics, "a drop that was to panic");
    }
}

fn panics(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn cgroup_that_takes_an_object_is_charged_until_it_returns_it() {
    for cpus in [1, 2, 256] {
        let machine = Machine::uniform(cpus).unwrap();
        let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
        let [spare, a, b] = ["spare", "a", "b"].map(|name| pcpu.root().create(name).unwrap());
        let accounted = PerCpu::<u64>::zeroed_for(&a).unwrap();
        let cost = a.current();
        drop(accounted);
        let pool = plain(&spare);
        let own = spare.current();
        let mut first = 0;
        for tenant in [&a, &b, &a, &spare, &pcpu.root()] {
            let before = pcpu.root().current();
            let object = pool.take(tenant).unwrap();
            if first == 0 {
                first = address(&object);
                assert_eq!(pcpu.root().current(), before + cost);
            } else {
                assert_eq!(pcpu.root().current(), before, "an idle object is charged as well");
            }
            assert_eq!(address(&object), first, "one object will do");
            for other in [&a, &b] {
                let is_charged = other == tenant;
                let charged = if is_charged { cost } else { 0 };
                assert_eq!((other.current(), other.stat().charged), (charged, charged));
            }
            let in_use_there = if *tenant == spare { cost } else { 0 };
            assert_eq!((spare.current(), pool.idle()), (own + in_use_there, 0));
            drop(object);
            assert_eq!((a.current(), b.current()), (0, 0));
            assert_eq!((spare.current(), pool.idle()), (own + cost, 1));
        }
        drop(pool);
        assert_eq!(spare.current(), 0);
        assert_eq!(pcpu.stats().nr_cur_alloc, 0);
        pcpu.verify().unwrap();
    }
}

#[test]
fn values_stay_and_are_reset_once_for_each_use() {
    let (_pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let [inits, resets] = [0, 1].map(|nth| {
        let counts = Arc::clone(&counts);
        move || counts[nth].fetch_add(1, Ordering::Relaxed)
    });
    let init = move |cpu: CpuId| {
        inits();
        (cpu, AtomicU64::new(7))
    };
    let reset = move |object: &mut PerCpu<(CpuId, AtomicU64)>| {
        resets();
        for (_, value) in object.iter_mut() {
            *value.1.get_mut() += 1;
        }
    };
    let pool = PerCpuPool::new_for(&spare, init, reset).unwrap();
    for uses in 0..5 {
        let object = pool.take(&tenant).unwrap();
        for (cpu, value) in object.iter() {
            assert_eq!(value.0, cpu);
            assert_eq!(value.1.fetch_add(100, Ordering::Relaxed), 7 + 101 * uses);
        }
        assert_eq!(counts[0].load(Ordering::Relaxed), CPUS);
        assert_eq!(counts[1].load(Ordering::Relaxed), uses as usize);
    }
    // What is constructed while another one is in use is new.
    let [one, two] = [(); 2].map(|()| pool.take(&tenant).unwrap());
    assert_eq!(counts[0].load(Ordering::Relaxed), 2 * CPUS);
    assert_ne!(address(&one), address(&two));
}

#[test]
fn a_refusal_constructs_nothing_and_loses_nothing() {
    let (pcpu, [spare, tenant, other]) = cgroups(["spare", "tenant", "other"]);
    let (alive, cost) = (Alive::default(), cost_of::<Value>());
    let value = alive.clone();
    let pool = PerCpuPool::new_for(&spare, move |_| value.value(), |_| ()).unwrap();
    let (own, before) = (spare.current(), pcpu.root().current());
    tenant.set_max(Limit::bytes(2 * cost - 1)).unwrap();

    let first = pool.take(&tenant).unwrap();
    assert!(pool.take(&tenant).unwrap_err().is_limit());
    assert_eq!((alive.objects(), tenant.current(), spare.current()), (1, cost, own));

    drop(pool.take(&other).unwrap());
    assert_eq!(pool.idle(), 1);
    let events = tenant.events().max;
    for _ in 0..100 {
        assert!(pool.take(&tenant).unwrap_err().is_limit(), "an idle one is refused as well");
    }
    assert_eq!(tenant.events().max, events + 100, "a refusal is one event");
    assert_eq!((alive.objects(), pool.idle()), (2, 1));
    assert_eq!((tenant.current(), other.current()), (cost, 0));
    assert_eq!(spare.current(), own + cost);

    drop(first);
    assert!(pool.take(&tenant).is_ok());
    pool.shrink(usize::MAX);
    assert_eq!((alive.count(), pcpu.root().current()), (0, before));
}

#[test]
fn impossible_types_and_cgroups_of_another_tree_are_errors() {
    let (_pcpu, [spare]) = cgroups(["spare"]);
    let (_other, [stranger]) = cgroups(["stranger"]);
    let before = spare.current();
    assert!(PerCpuPool::new_for(&spare, |_| (), |_| ()).unwrap_err().is_invalid());
    assert!(PerCpuPool::new_for(&spare, |_| [0_u8; 40_000], |_| ()).unwrap_err().is_invalid());
    assert_eq!(spare.current(), before);
    let pool = plain(&spare);
    assert!(pool.take(&stranger).unwrap_err().is_other_tree());
    assert_eq!(stranger.current(), 0);
    // A pool that its own cgroup has no room for.
    spare.set_max(Limit::bytes(spare.current())).unwrap();
    assert!(PerCpuPool::new_for(&spare, |_| 0_u64, |_| ()).unwrap_err().is_limit());
}

#[test]
fn objects_return_where_they_are_dropped() {
    let (_pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let pool = plain(&spare);
    let own = spare.current();
    // More than a CPU keeps by default go to the common list, and are found from everywhere.
    let objects: Vec<_> = on_cpu(0, || (0..40).map(|_| pool.take(&tenant).unwrap()).collect());
    assert_eq!(tenant.current(), 40 * COST);
    on_cpu(1, || drop(objects));
    assert_eq!((tenant.current(), pool.idle(), spare.current()), (0, 40, own + 40 * COST));
    let again: Vec<_> = on_cpu(1, || (0..40).map(|_| pool.take(&tenant).unwrap()).collect());
    assert_eq!(pool.idle(), 0, "nothing is constructed where something is idle");
    let addresses: BTreeSet<_> = again.iter().map(|object| address(object)).collect();
    assert_eq!(addresses.len(), 40);
}

#[test]
fn idle_objects_are_bounded() {
    // This CPU's list and the common one, or one of twice that length.
    for most in [0, 1, 5, 62, usize::MAX] {
        let kept = most.saturating_mul(2).min(200);
        let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
        let alive = Alive::default();
        let value = alive.clone();
        let pool = PerCpuPool::new_for(&spare, move |_| value.value(), |_| ()).unwrap();
        let pool = pool.with_max_idle(most);
        on_cpu(0, || {
            let objects: Vec<_> = (0..200).map(|_| pool.take(&tenant).unwrap()).collect();
            assert_eq!(alive.objects(), 200);
            drop(objects);
        });
        assert_eq!((alive.objects(), pool.idle(), tenant.current()), (kept as i64, kept, 0));
        drop(pool);
        assert_eq!((alive.count(), spare.current(), pcpu.stats().nr_cur_alloc), (0, 0, 0));
    }
}

#[test]
fn shrink_reaches_the_objects_of_all_cpus() {
    let (_pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let alive = Alive::default();
    let value = alive.clone();
    let pool = PerCpuPool::new_for(&spare, move |_| value.value(), |_| ()).unwrap();
    fill(&pool, &tenant, 60);
    on_cpu(0, || {
        assert_eq!(pool.shrink(0), 0);
        assert_eq!((pool.shrink(5), pool.idle(), alive.objects()), (5, 55, 55));
        assert_eq!((pool.shrink(40), pool.idle(), alive.objects()), (40, 15, 15));
        assert_eq!((pool.shrink(usize::MAX), pool.idle(), alive.count()), (15, 0, 0));
        assert_eq!(pool.shrink(1), 0);
    });
    // The stacks work again.
    fill(&pool, &tenant, 60);
}

#[test]
fn idle_objects_make_room_for_siblings() {
    let (_pcpu, [parent]) = cgroups(["parent"]);
    let [spare, tenant] = ["spare", "tenant"].map(|name| parent.create(name).unwrap());
    let pool = plain(&spare);
    fill(&pool, &tenant, 40);
    parent.set_max(Limit::bytes(parent.current())).unwrap();

    // In use or idle, an object counts once above both.
    let object = pool.take(&tenant).unwrap();
    assert_eq!((parent.events().max, pool.idle()), (0, 39));
    drop(object);
    // Without sequences, what the tenant's stock has got is not looked for.
    assert!(parent.events().max == 0 && (39..=40).contains(&pool.idle()));
    drop(pool);
    let pool = plain(&spare);
    parent.set_max(Limit::MAX).unwrap();
    fill(&pool, &tenant, 40);
    parent.set_max(Limit::bytes(parent.current())).unwrap();

    assert!(tenant.try_charge(COST).is_err(), "a charge that must not block asks no hook");
    assert_eq!(pool.idle(), 40);
    let some = tenant.charge(10 * COST).unwrap();
    assert!(pool.idle() <= 30 && pool.idle() > 20, "{}", pool.idle());
    let all = tenant.charge(30 * COST).unwrap();
    assert_eq!((pool.idle(), spare.stat().charged), (0, 0));
    assert!(tenant.charge(1).is_err());
    assert!(pool.take(&tenant).unwrap_err().is_limit());

    // The limit of a tenant is no reason to free what it does not pay for.
    drop((some, all));
    parent.set_max(Limit::MAX).unwrap();
    fill(&pool, &tenant, 10);
    tenant.set_max(Limit::bytes(COST)).unwrap();
    assert!(tenant.charge(2 * COST).is_err());
    assert_eq!(pool.idle(), 10);
    assert_eq!(spare.reclaim(3 * COST).unwrap() % COST, 0);
    assert!(pool.idle() <= 7);
}

#[test]
fn an_object_is_freed_where_its_pool_has_no_room() {
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let pool = plain(&spare);
    let own = spare.current();
    spare.set_max(Limit::bytes(own + 3 * COST)).unwrap();
    let areas = pcpu.stats().nr_cur_alloc;
    let objects: Vec<_> = (0..5).map(|_| pool.take(&tenant).unwrap()).collect();
    drop(objects);
    assert_eq!((pool.idle(), tenant.current(), spare.current()), (3, 0, own + 3 * COST));
    assert_eq!((pcpu.stats().nr_cur_alloc, spare.events().max), (areas + 3, 0));
}

#[test]
fn a_return_calls_no_hook_and_no_callback() {
    let (_pcpu, [parent]) = cgroups(["parent"]);
    let [spare, tenant] = ["spare", "tenant"].map(|name| parent.create(name).unwrap());
    let pool = plain(&spare);
    let objects: Vec<_> = (0..4).map(|_| pool.take(&tenant).unwrap()).collect();
    let _hook = spare.on_reclaim(0, |_| panic!("a hook"));
    let _high = spare.on_high(|_| panic!("a callback"));
    spare.set_high(Limit::bytes(spare.current() + COST)).unwrap();
    drop(objects);
    assert_eq!((pool.idle(), spare.stat().charged, spare.events().high), (1, COST, 0));
}

#[test]
fn a_removed_cgroup_passes_its_objects_on() {
    let (pcpu, [parent]) = cgroups(["parent"]);
    let [spare, tenant] = ["spare", "tenant"].map(|name| parent.create(name).unwrap());
    let pool = plain(&spare);
    fill(&pool, &tenant, 2);
    let object = pool.take(&tenant).unwrap();
    assert_eq!(parent.stat().charged, 2 * COST);
    tenant.remove().unwrap();
    assert_eq!(parent.stat().charged, 2 * COST);
    drop(object);
    assert_eq!((parent.stat().charged, spare.stat().charged, pool.idle()), (2 * COST, 2 * COST, 2));
    // A removed cgroup takes for its parent.
    let object = pool.take(&tenant).unwrap();
    assert_eq!((parent.stat().charged, spare.stat().charged), (2 * COST, COST));
    spare.remove().unwrap();
    assert_eq!(parent.stat().charged, 2 * COST, "idle and in use");
    drop(object);
    assert_eq!((parent.stat().charged, pool.idle()), (2 * COST, 2));
    assert_eq!(pool.shrink(usize::MAX), 2);
    drop(pool);
    assert_eq!((parent.current(), pcpu.stats().nr_cur_alloc), (0, 0));
}

#[test]
fn pools_and_objects_go_in_any_order() {
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let alive = Alive::default();
    let value = alive.clone();
    let pool = PerCpuPool::new_for(&spare, move |_| value.value(), |_| ()).unwrap();
    let pool = Arc::new(pool);
    fill(&pool, &tenant, 4);
    let owned: Pooled<Value, Arc<PerCpuPool<Value>>> = pool.take_owned(&tenant).unwrap();
    let borrowed = pool.take(&tenant).unwrap();
    drop(borrowed);
    drop(pool);
    assert_eq!(alive.objects(), 4);
    drop(owned);
    assert_eq!((alive.count(), spare.current(), tenant.current()), (0, 0, 0));
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    // A pool keeps the tree, and the tree does not keep the pool.
    let pool = plain(&spare);
    drop(pool.take(&tenant).unwrap());
    drop((pcpu, spare, tenant));
    assert_eq!(pool.idle(), 1);
    drop(pool);
}

#[test]
fn a_hook_that_is_late_finds_no_pool() {
    let (_pcpu, [spare]) = cgroups(["spare"]);
    let pool = plain(&spare);
    drop(pool.take(&spare).unwrap());
    drop(pool);
    let _held = spare.charge(1000).unwrap();
    assert!(spare.reclaim(10).is_err());
}

#[test]
fn operations_work_on_what_is_pooled() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let pool = PerCpuPool::<Local<u64>>::new_for(
        &pcpu.root(),
        |_| Local::new(0),
        |hits| {
            hits.take();
        },
    )
    .unwrap();
    for _ in 0..3 {
        let hits = pool.take(&tenant).unwrap();
        hits.add(3);
        assert_eq!(hits.sum(), 3);
    }
}

/// One thread takes and returns as fast as it can, and another one takes what is idle on that CPU.
#[test]
fn a_shrink_and_a_take_do_not_get_the_same_object() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let alive = Alive::default();
    let value = alive.clone();
    let pool = PerCpuPool::new_for(&pcpu.root(), move |_| value.value(), |_| ()).unwrap();
    let (users, is_over) = (AtomicI64::new(0), AtomicBool::new(false));
    let mut shrunk = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            on_cpu(1, || {
                while !is_over.load(Ordering::Relaxed) {
                    let objects = [(); 3].map(|()| pool.take(&pcpu.root()).unwrap());
                    users.fetch_add(1, Ordering::Relaxed);
                    for (nth, object) in objects.iter().enumerate() {
                        let others = &objects[nth + 1..];
                        assert!(others.iter().all(|other| address(other) != address(object)));
                    }
                }
            });
        });
        on_cpu(0, || {
            let since = Instant::now();
            while since.elapsed() < Duration::from_millis(500) {
                shrunk += pool.shrink(2);
            }
            is_over.store(true, Ordering::Relaxed);
        });
    });
    assert!(shrunk > 0 && users.into_inner() > 0);
    let possible = pcpu.machine().nr_possible() as i64;
    assert_eq!(alive.count(), pool.idle() as i64 * possible);
    drop(pool);
    assert_eq!((alive.count(), pcpu.stats().nr_cur_alloc), (0, 0));
}

/// Objects change threads and CPUs, the pool is shrunk and its cgroup reclaimed, and tenants come to their
/// limits and are removed. In the end nothing is left.
#[test]
fn eight_threads_leave_nothing() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let cpus = pcpu.machine().nr_possible() as i64;
    let before = pcpu.root().current();
    let parent = pcpu.root().create("parent").unwrap();
    let spare = parent.create("spare").unwrap();
    let alive = Alive::default();
    let value = alive.clone();
    let reset = |object: &mut PerCpu<Value>| {
        let in_use = object.iter().any(|(_, value)| value.is_dropped.load(Ordering::Relaxed));
        assert!(!in_use, "an object that was freed is in use");
    };
    let pool = PerCpuPool::new_for(&spare, move |_| value.value(), reset).unwrap().with_max_idle(8);
    let cost = pool.take(&spare).map(|_held| spare.stat().charged).unwrap();
    let in_hands = parking_lot::Mutex::new(Vec::new());
    let owners: parking_lot::Mutex<BTreeSet<usize>> = parking_lot::Mutex::default();
    thread::scope(|scope| {
        for nth in 0..8_u64 {
            let (pool, parent, spare) = (&pool, &parent, &spare);
            let (in_hands, owners) = (&in_hands, &owners);
            scope.spawn(move || {
                let cores = core_affinity::get_core_ids().unwrap();
                let mut tenant = parent.create(&format!("tenant{nth}")).unwrap();
                tenant.set_max(Limit::bytes(6 * cost)).unwrap();
                let mut random = nth + 1;
                let mut held: Vec<Pooled<Value, &PerCpuPool<Value>>> = Vec::new();
                for step in 0..20_000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    match random % 32 {
                        0 => assert!(pool.shrink(random as usize >> 8 & 7) <= 7),
                        1 => drop(spare.reclaim(cost)),
                        2 => in_hands.lock().extend(held.pop()),
                        3 => {
                            let from_another = in_hands.lock().pop();
                            held.extend(from_another);
                        }
                        4 if step % 64 == 0 => {
                            core_affinity::set_for_current(cores[random as usize % cores.len()]);
                        }
                        5 if step % 512 == 0 => {
                            tenant.remove().unwrap();
                            tenant = parent.create(&format!("tenant{nth}")).unwrap();
                        }
                        6..=18 => {
                            if let Ok(object) = pool.take(&tenant) {
                                let is_alone = owners.lock().insert(address(&object));
                                assert!(is_alone, "two users have one object");
                                held.push(object);
                            }
                        }
                        _ => {
                            if let Some(object) = held.pop() {
                                assert!(owners.lock().remove(&address(&object)));
                                drop(object);
                            }
                        }
                    }
                }
                for object in held {
                    assert!(owners.lock().remove(&address(&object)));
                    drop(object);
                }
                tenant.remove().unwrap();
            });
        }
    });
    drop(in_hands);
    let idle = pool.idle();
    assert_eq!(alive.count(), idle as i64 * cpus);
    assert_eq!(spare.stat().charged, idle as u64 * cost);
    assert_eq!(pool.shrink(usize::MAX), idle);
    assert_eq!((alive.count(), spare.stat().charged, parent.stat().charged), (0, 0, 0));
    drop(pool);
    spare.remove().unwrap();
    parent.remove().unwrap();
    assert_eq!(pcpu.root().current(), before);
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    pcpu.verify().unwrap();
}
