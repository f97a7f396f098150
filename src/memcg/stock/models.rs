//! Stocks alone, with a payer that is one number, in every interleaving of two threads.
//!
//! A thread that charges or uncharges does what `charge::try_charge` and `node::reparent` do, in
//! short. At the end, what is charged is what was charged and not uncharged, whatever stocks hold.

use std::sync::Arc;

use loom::model::Builder;
use loom::thread;

use crate::arena::Owner;
use crate::memcg::stock::Stock;
use crate::memcg::stock::objcg::{Inherited, ObjCgroup, Payer, Pool};
use crate::memcg::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::memcg::sync::{Mutex, WordPair, run_on};
use crate::sys::Machine;

/// One counter, and whether stocks may hold bytes for it.
struct Toy {
    token: &'static ObjCgroup<Toy>,
    usage: AtomicU64,
    is_closed: AtomicBool,
    inherited: Mutex<Inherited<Toy>>,
}

impl Payer for Toy {
    type Account = ();

    fn token(&self) -> &'static ObjCgroup<Toy> {
        self.token
    }

    fn uncharge(&self, bytes: u64) {
        let before = self.usage.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "M6");
    }

    fn count(&self, _: i64) {}

    fn prepare_to_stock(_: &Arc<Toy>) {}

    fn note_stocked(_: &Arc<Toy>) -> bool {
        true
    }

    fn may_stock(&self) -> bool {
        !self.is_closed.load(Ordering::SeqCst)
    }

    fn inherited(&self) -> &Mutex<Inherited<Toy>> {
        &self.inherited
    }

    fn give_up((): &()) -> Option<&'static ObjCgroup<Toy>> {
        None
    }

    fn pool() -> &'static Pool<Toy> {
        static POOL: Pool<Toy> = Pool::new();
        &POOL
    }
}

#[derive(Clone)]
struct Cgroup {
    toy: Arc<Toy>,
    stock: Arc<Stock<Toy>>,
}

impl Cgroup {
    fn new(stock: &Arc<Stock<Toy>>) -> Self {
        let token = ObjCgroup::new();
        let toy = Arc::new(Toy {
            token,
            usage: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            inherited: Mutex::default(),
        });
        token.belong_to(&toy, WordPair::without_owner());
        Cgroup { toy, stock: Arc::clone(stock) }
    }

    fn usage(&self) -> u64 {
        self.toy.usage.load(Ordering::SeqCst)
    }

    fn cached(&self) -> u64 {
        self.stock.amount(self.toy.token)
    }

    /// Charges `bytes`, and `ahead` more where it gets a grant. Returns whether it came out of the
    /// stock.
    fn charge(&self, bytes: u64, ahead: u64) -> bool {
        let token = self.toy.token;
        if token.take(bytes, 1) {
            return true;
        }
        token.open();
        let mut here = self.stock.lock_to_charge(token, Some(&self.toy));
        let (mut taken, mut ahead) = (0, ahead);
        if let Some(here) = &mut here {
            if here.grant(&self.toy, bytes) == 0 {
                ahead = 0;
            }
            taken = here.take_all(token);
        }
        // What was taken and is not needed goes back.
        ahead = ahead.max(taken.saturating_sub(bytes));
        self.toy.usage.fetch_add((bytes + ahead).saturating_sub(taken), Ordering::SeqCst);
        let is_put = here.as_ref().is_some_and(|here| here.put(token, ahead, 1));
        if !is_put {
            token.uncharge(ahead);
            std::mem::forget(token.get());
        }
        false
    }

    fn uncharge(&self, bytes: u64) {
        let token = self.toy.token;
        if token.put_bytes(bytes, -1) {
            return;
        }
        let is_put = self.stock.lock_to_uncharge(&self.toy).is_some_and(|mut here| {
            here.grant(&self.toy, bytes);
            here.put(token, bytes, -1)
        });
        if !is_put {
            token.uncharge(bytes);
            token.put();
        }
    }

    fn drain(&self) -> u64 {
        match self.toy.token.cpus().is_empty() {
            true => 0,
            false => self.stock.drain(&[Arc::clone(&self.toy)]),
        }
    }

    /// Nothing is charged but `bytes`.
    fn assert_charged(&self, bytes: u64) {
        self.drain();
        assert_eq!((self.usage(), self.cached()), (bytes, 0));
    }

    /// Takes the words out, and gives the cgroup's own reference back. True when that was the last.
    fn remove(&self) -> bool {
        self.toy.is_closed.store(true, Ordering::SeqCst);
        let taken = self.stock.take_out(self.toy.token).expect("once");
        drop(taken.into_words().release());
        self.toy.token.put();
        self.toy.token.payer().is_none()
    }
}

fn stock() -> Arc<Stock<Toy>> {
    Arc::new(Stock::new(&Machine::uniform(2).unwrap()))
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(5);
    builder.max_branches = 50_000;
    builder.check(model);
}

/// Runs one closure on CPU 1 and the other on that CPU.
fn two<A: Send + 'static, B>(
    one: impl FnOnce() -> A + Send + 'static,
    cpu: usize,
    other: impl FnOnce() -> B,
) -> (A, B) {
    let one = thread::spawn(move || {
        run_on(1);
        one()
    });
    run_on(cpu);
    let other = other();
    (one.join().unwrap(), other)
}

/// A drain meets a charge out of the stock, and its end, on another CPU or on the same.
#[test]
fn models_drain_against_take_and_put() {
    for cpu in [0, 1] {
        check(move || {
            let cgroup = Cgroup::new(&stock());
            run_on(cpu);
            cgroup.charge(8, 0);
            cgroup.uncharge(8);
            let draining = cgroup.clone();
            let (drained, ()) = two(
                move || draining.drain(),
                cpu,
                || {
                    cgroup.charge(6, 0);
                    cgroup.uncharge(6);
                },
            );
            assert!(drained <= 14, "{drained}");
            cgroup.assert_charged(0);
        });
    }
}

/// Two drains of one token, while its stock is filled.
#[test]
fn models_two_drains() {
    check(|| {
        let cgroup = Cgroup::new(&stock());
        run_on(0);
        cgroup.charge(8, 16);
        let draining = cgroup.clone();
        let (_, _) = two(move || draining.drain(), 0, || cgroup.drain());
        assert_eq!(cgroup.usage() - cgroup.cached(), 8);
        cgroup.uncharge(8);
        cgroup.assert_charged(0);
    });
}

/// After stocks were forbidden and drained, none holds anything.
#[test]
fn models_a_ban_leaves_no_bytes_in_stocks() {
    check(|| {
        let cgroup = Cgroup::new(&stock());
        let banning = cgroup.clone();
        let (usage, ()) = two(
            move || {
                banning.toy.is_closed.store(true, Ordering::SeqCst);
                banning.drain();
                assert_eq!(banning.cached(), 0, "T2");
                banning.usage()
            },
            0,
            || {
                cgroup.charge(8, 16);
                cgroup.uncharge(8);
            },
        );
        assert!(usage <= 24, "{usage}");
        assert_eq!((cgroup.usage(), cgroup.cached()), (0, 0));
    });
}

/// Three tokens of which two have room on a CPU; one is drained while another evicts it.
#[test]
fn models_eviction_against_drain() {
    check(|| {
        let stock = stock();
        let cgroups = [(); 3].map(|()| Cgroup::new(&stock));
        run_on(0);
        for cgroup in &cgroups[..2] {
            cgroup.charge(8, 0);
            cgroup.uncharge(8);
        }
        let draining = cgroups[0].clone();
        let charging = cgroups[2].clone();
        let (_, ()) = two(
            move || draining.drain(),
            0,
            || {
                charging.charge(8, 0);
                charging.uncharge(8);
            },
        );
        cgroups.iter().for_each(|cgroup| cgroup.assert_charged(0));
    });
}

/// A removal meets a charge and the end of another one.
#[test]
fn models_removal_against_take_and_put() {
    for cpu in [0, 1] {
        check(move || {
            let cgroup = Cgroup::new(&stock());
            run_on(cpu);
            cgroup.charge(8, 16);
            let removing = cgroup.clone();
            let (_, ()) = two(
                move || removing.remove(),
                cpu,
                || {
                    cgroup.charge(4, 0);
                    cgroup.uncharge(8);
                },
            );
            assert_eq!((cgroup.usage(), cgroup.cached()), (4, 0));
            let token = cgroup.toy.token;
            assert!(token.payer().is_some(), "one charge refers to it");
            cgroup.uncharge(4);
            assert_eq!(cgroup.usage(), 0);
            assert!(token.payer().is_none(), "released");
            assert!(std::ptr::eq(token.get().into_static(), token));
        });
    }
}
