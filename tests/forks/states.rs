//! The states that a parent may be in. The child does everything with its copies, and drops all of them.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use percpu_memcg::cgroup::{EventWatch, PeakReader, ReclaimRequest, TreeWatch};
use percpu_memcg::report::History;
use percpu_memcg::{
    Charge, Gfp, InMemcg, Limit, Local, Memcg, PerCpu, PerCpuAllocator, PerCpuCounter, PerCpuPool,
};

use crate::alone;
use crate::children::in_forked_child;
use crate::statements::a_delay_ends;

/// What a thread is charging when it forks in a callback.
const IN_FLIGHT: u64 = 77;

/// Something of everything.
struct World {
    pcpu: PerCpuAllocator,
    tenant: Memcg,
    children: Vec<Memcg>,
    charges: Vec<Charge>,
    words: Vec<PerCpu<Local<u64>>>,
    counter: PerCpuCounter,
    pool: PerCpuPool<Local<u64>>,
    peak: PeakReader,
    watches: (EventWatch, TreeWatch),
}

impl World {
    fn new() -> Self {
        let pcpu = PerCpuAllocator::new().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let children: Vec<_> =
            ["a", "b", "c"].iter().map(|name| tenant.create(name).unwrap()).collect();
        let pool = PerCpuPool::new_for(&tenant, |_cpu| Local::new(0), |_| ()).unwrap();
        let charges = children.iter().map(|child| child.charge(1000).unwrap()).collect();
        let words = (0..50).map(|_| PerCpu::zeroed_for(&tenant).unwrap()).collect();
        let peak = tenant.peak_reader();
        let counter = PerCpuCounter::new_for(&children[0]).unwrap();
        let mut watches = (tenant.watch_events(), pcpu.root().watch_tree(Duration::ZERO));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(watches.0.poll_changed(context).is_pending());
        assert!(watches.1.poll_changed(context).is_pending());
        let world = World { pcpu, tenant, children, charges, words, counter, pool, peak, watches };
        world.leaves_stocks_on_cpus();
        world
    }

    /// Stocks, cached areas, idle objects and batches, which threads that have ended left on CPUs.
    fn leaves_stocks_on_cpus(&self) {
        let work = || {
            let objects: Vec<_> =
                (0..5).map(|_| self.pool.take(&self.children[1]).unwrap()).collect();
            self.children.iter().for_each(|child| drop(child.charge(300).unwrap()));
            drop(PerCpu::<[u64; 3]>::zeroed_for(&self.children[2]).unwrap());
            self.counter.add(3);
            drop(objects);
        };
        for _ in 0..4 {
            thread::scope(|scope| {
                (0..4).for_each(|_| drop(scope.spawn(work)));
            });
        }
    }

    /// In a child: everything, and then nothing is left.
    fn use_and_drop(mut self) -> bool {
        let root = self.pcpu.root();
        root.attach_thread().unwrap();
        for child in &self.children {
            child.set_max(Limit::MAX).unwrap();
            child.set_high(Limit::MAX).unwrap();
        }
        assert_eq!((root.nr_threads(), self.tenant.nr_threads()), (0, 0));
        self.leaves_stocks_on_cpus();
        assert_eq!(self.counter.sum(), 3 * 16 * 2);
        self.peak.reset();
        let new = self.tenant.create("new").unwrap();
        new.attach_thread().unwrap();
        assert_eq!(new.nr_threads(), 1);
        new.set_max(Limit::bytes(10_000)).unwrap();
        let mut held = Vec::new();
        while let Ok(charge) = new.try_charge(100)
            && held.len() < 200
        {
            held.push(charge);
        }
        // A child that is forked inside of a hook stays inside.
        assert!([100, 200].contains(&held.len()), "to the limit: {}", held.len());
        if held.len() == 100 {
            assert!(self.watches.0.wait_timeout(Duration::from_secs(5)).is_some());
            assert!(self.watches.1.wait_timeout(Duration::from_secs(5)).is_some());
        }
        self.words.iter().for_each(PerCpu::inc);
        root.attach_thread().unwrap();
        new.remove().unwrap();
        drop(held);
        self.tenant.drain();
        self.pcpu.trim();
        assert!(self.pool.shrink(usize::MAX) > 0);
        assert!(!root.snapshot().cgroups.is_empty());
        for child in &self.children {
            child.remove().unwrap();
        }
        let World { pcpu, tenant, children, charges, words, counter, pool, peak, watches } = self;
        drop((charges, words, counter, pool, peak, watches, children));
        tenant.remove().unwrap();
        drop(tenant);
        root.drain();
        let in_flight = root.current();
        assert!(in_flight == 0 || in_flight == IN_FLIGHT, "{in_flight}");
        assert_eq!(root.nr_descendants(), 0);
        assert_eq!((pcpu.stats().nr_cur_alloc, pcpu.verify()), (0, Ok(())));
        true
    }
}

/// Forks, and has the child try its world.
type Fork = Arc<dyn Fn() + Send + Sync>;

/// Tries a child that is forked in a state: `state` calls what it is given there.
fn in_state(name: &str, state: impl FnOnce(&Memcg, Fork)) {
    let world = World::new();
    let tenant = world.tenant.clone();
    let (world, forks) = (Mutex::new(Some(world)), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&forks);
    let fork = move || {
        let of_child = || {
            let world = world.lock().unwrap().take();
            world.is_some_and(World::use_and_drop)
        };
        // A copy is complete for a child of a child, too.
        assert!(in_forked_child(of_child) && in_forked_child(|| in_forked_child(of_child)));
        count.fetch_add(1, Relaxed);
    };
    state(&tenant, Arc::new(fork));
    assert!(forks.load(Relaxed) > 0, "{name}");
}

#[test]
fn without_a_fork() {
    assert!(World::new().use_and_drop());
}

#[test]
fn attached_and_in_scopes() {
    let _alone = alone();
    in_state("attached", |tenant, fork| {
        tenant.find("a").unwrap().attach_thread().unwrap();
        fork();
        tenant.parent().unwrap().attach_thread().unwrap();
    });
    in_state("future", |tenant, fork| {
        let mut future = pin!(async { fork() }.in_memcg(tenant));
        assert!(future.as_mut().poll(&mut context()).is_ready());
    });
    in_state("thread", |tenant, fork| tenant.spawn(move || fork()).unwrap().join().unwrap());
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[test]
fn inside_of_hooks_and_callbacks() {
    let _alone = alone();
    // The child stays inside of those of a reclaim.
    in_state("reclaim hook", |tenant, fork| {
        let of_hook = move |_: &ReclaimRequest| {
            fork();
            0
        };
        tenant.find("a").unwrap().on_reclaim(0, of_hook).detach();
        tenant.find("b").unwrap().reclaim(100).unwrap_err();
        tenant.find("a").unwrap().reclaim(100).unwrap_err();
    });
    in_state("OOM callback", |tenant, fork| {
        let a = tenant.find("a").unwrap();
        a.on_oom(move |_| {
            fork();
            false
        })
        .detach();
        a.set_max(Limit::bytes(1100)).unwrap();
        a.charge(500).unwrap_err();
        a.set_max(Limit::MAX).unwrap();
    });
    in_state("high callback", |tenant, fork| {
        let a = tenant.find("a").unwrap();
        a.on_high(move |_| fork()).detach();
        a.set_high(Limit::bytes(10)).unwrap();
        // A forked child has no use for the frame that has this charge.
        drop(a.charge(IN_FLIGHT).unwrap());
        a.set_high(Limit::MAX).unwrap();
    });
    in_state("kill callback", |tenant, fork| {
        tenant.on_kill(move |_| fork()).detach();
        tenant.kill().unwrap();
    });
    in_state("waker", |tenant, fork| {
        struct Wakes(Fork);
        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {
                (self.0)();
            }
        }
        let waker = Waker::from(Arc::new(Wakes(fork)));
        let mut watch = tenant.watch_events();
        assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
        let a = tenant.find("a").unwrap();
        a.set_max(Limit::bytes(1000)).unwrap();
        a.try_charge(1).unwrap_err();
        a.set_max(Limit::MAX).unwrap();
    });
}

#[test]
fn while_values_are_initialised_and_dropped() {
    let _alone = alone();
    in_state("initialiser", |tenant, fork| {
        // Of another allocator: this one has an area more.
        let other = PerCpuAllocator::new().unwrap();
        assert!(!tenant.is_removed());
        drop(PerCpu::new_in(&other, Gfp::KERNEL, |cpu| (cpu.get() == 0).then(&*fork)).unwrap());
    });
    in_state("thread-local destructor", |tenant, fork| {
        struct AtExit(Fork);
        impl Drop for AtExit {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        thread_local!(static AT_EXIT: RefCell<Option<AtExit>> = const { RefCell::new(None) });
        // Before and after what the library keeps for the thread.
        let (first, last) = (Arc::clone(&fork), tenant.clone());
        let before = move || {
            AT_EXIT.set(Some(AtExit(first)));
            drop(last.charge(1 << 20).unwrap());
        };
        thread::spawn(before).join().unwrap();
        let tenant = tenant.clone();
        let after = move || {
            tenant.attach_thread().unwrap();
            tenant.parent().unwrap().attach_thread().unwrap();
            AT_EXIT.set(Some(AtExit(fork)));
        };
        thread::spawn(after).join().unwrap();
    });
}

/// In a namespace of its own, a child may have the id of its parent.
#[test]
fn a_child_with_the_id_of_its_parent() {
    /// The first process of a new namespace has the id 1.
    fn in_new_namespace(of_users: libc::c_int, work: impl FnOnce() -> bool) -> bool {
        // SAFETY: takes numbers. Children that are forked from here on are in a namespace of their own.
        let is_permitted = unsafe { libc::unshare(of_users | libc::CLONE_NEWPID) } == 0;
        if !is_permitted {
            println!("skipped: namespaces are not permitted");
            return true;
        }
        in_forked_child(|| {
            // SAFETY: takes numbers: the first process of a namespace does not get the signal of `alarm`.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            assert_eq!(process::id(), 1);
            work()
        })
    }
    let _alone = alone();
    assert!(in_forked_child(|| {
        in_new_namespace(libc::CLONE_NEWUSER, || {
            let world = World::new();
            let member = world.children[0].clone();
            member.attach_thread().unwrap();
            let history = Arc::new(History::of(&world.tenant));
            let sampler = History::start(&history, Duration::from_secs(1000)).unwrap();
            while history.samples().is_empty() {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(a_delay_ends(&world.children[1]));
            in_new_namespace(0, || {
                drop(sampler);
                assert!(a_delay_ends(&world.children[1]));
                assert_eq!(member.threads(), [1]);
                world.use_and_drop()
            })
        })
    }));
}
