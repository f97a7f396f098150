//! Steps with limits, and what is asked when one stands against a charge.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::thread;

use percpu_memcg::{Gfp, Limit, Memcg};

use crate::Choices;
use crate::held::Item;
use crate::steps::Hand;
use crate::world::{World, count};

/// What callbacks panic with now and then. No hook reports it.
pub(crate) struct Planned;

impl Hand {
    fn limit(&mut self, memcg: &Memcg) -> Limit {
        let usage = memcg.current() as usize;
        if self.world.is_calm.load(Relaxed) {
            return self.choices.of(&[Limit::MAX, Limit::bytes(1 << 40)]);
        }
        match self.choices.below(8) {
            0 => Limit::bytes(0),
            1 => Limit::bytes(self.choices.below(usage + 1) as u64),
            2 => Limit::bytes((usage + self.choices.below(100_000)) as u64),
            3 => Limit::bytes((usage + self.choices.below(3_000_000)) as u64),
            _ => Limit::MAX,
        }
    }

    pub(crate) fn set_max(&mut self) {
        let memcg = self.cgroup();
        let max = self.limit(&memcg);
        let set = memcg.set_max(max);
        assert!(set.is_ok() || memcg.is_root() || memcg.is_removed(), "{set:?}");
    }

    pub(crate) fn set_high(&mut self) {
        let memcg = self.cgroup();
        let high = self.limit(&memcg);
        let set = memcg.set_high(high);
        assert!(set.is_ok() || memcg.is_root() || memcg.is_removed(), "{set:?}");
    }

    pub(crate) fn set_protection(&mut self) {
        let memcg = self.cgroup();
        let bytes = Limit::bytes(self.choices.of(&[0, 0, 100, 10_000, 1_000_000, 1 << 40]));
        let set = match self.choices.below(3) {
            0 => memcg.set_low(bytes),
            1 => memcg.set_min(bytes),
            _ => memcg.set_oom_group(self.choices.once_in(2)),
        };
        assert!(set.is_ok() || memcg.is_root() || memcg.is_removed(), "{set:?}");
    }

    pub(crate) fn drain(&mut self) {
        let memcg = self.cgroup();
        crate::sane(memcg.drain());
        count(&self.world.done.drains);
    }

    pub(crate) fn reclaim(&mut self) {
        let (memcg, bytes) = (self.cgroup(), self.bytes());
        match memcg.reclaim(bytes) {
            Ok(reclaimed) => assert!(reclaimed >= bytes),
            Err(error) => assert!(error.reclaimed < bytes && error.requested == bytes),
        }
    }

    /// Where no `high` is exceeded for long, the thread does not sleep.
    pub(crate) fn throttle(&mut self) {
        let memcg = self.cgroup();
        // Hooks run in the first poll; the delay is not waited for.
        let _polled = pin!(memcg.throttled()).poll(&mut Context::from_waker(Waker::noop()));
        let way = std::iter::successors(Some(memcg.clone()), Memcg::parent);
        if way.into_iter().all(|level| level.high() == Limit::MAX) {
            memcg.throttle();
        }
    }

    /// Registers a hook or a callback, which lives with the cgroup or until a later step.
    pub(crate) fn register(&mut self) {
        if self.registrations.len() >= 4 {
            return self.unregister();
        }
        let memcg = self.cgroup();
        // What a callback knows of its own cgroup would keep it for good.
        let Some(parent) = memcg.parent() else { return };
        let captured = Captured {
            world: Arc::downgrade(&self.world),
            memcg: parent,
            seed: AtomicU64::new(self.choices.below(1 << 30) as u64),
        };
        let order = self.choices.below(3) as i32 - 1;
        let registration = match self.choices.below(3) {
            0 => memcg.on_reclaim(order, move |request| captured.give(request.bytes)),
            1 => memcg.on_high(move |event| {
                crate::sane(event.usage);
                captured.give(event.usage);
            }),
            _ => memcg.on_oom(move |event| {
                if captured.choices().once_in(4) {
                    event.record_kill(&captured.memcg);
                }
                captured.give(event.requested) > 0
            }),
        };
        match self.choices.once_in(4) {
            true => registration.detach(),
            false => self.registrations.push(registration),
        }
    }

    pub(crate) fn unregister(&mut self) {
        if !self.registrations.is_empty() {
            let nth = self.choices.below(self.registrations.len());
            drop(self.registrations.swap_remove(nth));
        }
    }
}

/// What a hook or a callback knows. It charges when it is dropped.
struct Captured {
    world: Weak<World>,
    memcg: Memcg,
    seed: AtomicU64,
}

impl Captured {
    fn choices(&self) -> Choices {
        Choices(self.seed.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed))
    }

    /// Drops some of what is in the pool, and says how much that was. Does other things as well.
    fn give(&self, wanted: u64) -> u64 {
        let Some(world) = self.world.upgrade() else { return 0 };
        count(&world.done.hooks);
        let mut choices = self.choices();
        let mut given = 0;
        for _ in 0..choices.below(6) {
            let Some(item) = world.unpool() else { break };
            given += item.bytes;
        }
        match choices.below(16) {
            0..4 => {
                let bytes = choices.below(20_000) as u64;
                let gfp = choices.of(&[Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC]);
                if let Ok(charge) = self.memcg.charge_with(bytes, gfp) {
                    world.pool(Item::charge(charge, &self.memcg));
                }
            }
            4 => {
                self.memcg.drain();
                count(&world.done.drains);
            }
            5 => {
                if let Ok(child) = self.memcg.create(&crate::tree::new_name(&world)) {
                    drop(child.charge_forced(100));
                    child.remove().expect("no other thread knows it");
                }
            }
            6 => drop(self.memcg.set_high(Limit::MAX)),
            7 if !world.is_calm.load(Relaxed) => {
                drop(self.memcg.set_max(Limit::bytes(wanted)));
            }
            8 if !thread::panicking() => resume_unwind(Box::new(Planned)),
            _ => {}
        }
        given
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        let Some(world) = self.world.upgrade() else { return };
        let mut choices = self.choices();
        let bytes = choices.below(20_000) as u64;
        let gfp = choices.of(&[Gfp::KERNEL, Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC]);
        let charge = || self.memcg.charge_with(bytes, gfp);
        if let Ok(Ok(charge)) = catch_unwind(AssertUnwindSafe(charge))
            && choices.once_in(2)
        {
            world.pool(Item::charge(charge, &self.memcg));
        }
    }
}
