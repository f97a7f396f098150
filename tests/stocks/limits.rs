//! Threads that together stay within a limit are never refused, whatever stocks hold.
//!
//! Every limit is exactly what the threads can use at most. So each charge that a stock stands in
//! the way of shows as a refusal.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use parking_lot::Mutex;
use percpu_memcg::{AllocError, Charge, Gfp, Memcg, PerCpu};

use crate::requests::{
    Requests, Slots, THREADS, allow, assert_unused, children, never_refused, quietly,
};
use crate::tiers::in_each_tier;
use crate::{BATCH, Choices, move_to, tenant, two_cpus};

#[test]
fn threads_that_share_a_cgroup_stay_within_its_limit() {
    const BYTES: u64 = 100_000;
    in_each_tier(|| {
        for gfp in [Gfp::NOWAIT, Gfp::KERNEL] {
            let (_pcpu, tenant) = tenant();
            let [child] = children(&tenant);
            // The words of the child are charged to its parent.
            allow(&tenant, THREADS as u64 * BYTES);
            let before = tenant.current();
            let work = |_, choices: &mut Choices, requests: &Requests| {
                let charge = requests.note(child.charge_with(BYTES, gfp));
                // So that threads meet others in the middle of what they do.
                if choices.below(20) == 0 {
                    thread::yield_now();
                }
                drop(charge);
            };
            never_refused(THREADS, work, quietly);
            assert_unused(&tenant, before);
        }
    });
}

/// One CPU at a time: no race is needed for a stock to stand in the way.
#[test]
fn bytes_in_the_stock_of_another_cpu_are_no_reason_to_refuse() {
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        for bytes in [1, 4096, BATCH - 1, BATCH, BATCH + 1, 1_000_000] {
            let (_pcpu, tenant) = tenant();
            let siblings: [Memcg; 12] = children(&tenant);
            allow(&tenant, bytes);
            for (nth, sibling) in siblings.iter().cycle().take(40).enumerate() {
                move_to(cpus[nth % 2]);
                let charge = sibling.try_charge(bytes).expect("all of it is free");
                charge.shrink(bytes - 1).expect("it holds so much");
                move_to(cpus[nth / 2 % 2]);
                charge.try_grow(bytes - 1).expect("all but one is free");
            }
        }
    });
}

#[test]
fn charges_that_end_on_another_cpu_stay_within_a_limit() {
    const BYTES: u64 = 100_000;
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let [child] = children(&tenant);
        allow(&tenant, THREADS as u64 * BYTES);
        let before = tenant.current();
        let slots = Slots::new(cpus);
        let work = |thread, choices: &mut Choices, requests: &Requests| {
            slots.exchange(thread, choices, |_, choices| {
                let gfp = choices.of(&[Gfp::NOWAIT, Gfp::KERNEL]);
                requests.note(child.charge_with(BYTES, gfp))
            });
        };
        never_refused(THREADS, work, quietly);
        drop(slots);
        assert_unused(&tenant, before);
    });
}

#[test]
fn two_levels_of_limits_hold_exactly_what_is_needed() {
    const BYTES: u64 = 77_777;
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let leaves: [Memcg; 2] = children(&tenant);
        for leaf in &leaves {
            allow(leaf, BYTES * THREADS as u64 / 2);
        }
        allow(&tenant, BYTES * THREADS as u64);
        let before = tenant.current();
        let slots = Slots::new(cpus);
        let work = |thread, choices: &mut Choices, requests: &Requests| {
            slots.exchange(thread, choices, |nth, choices| {
                let gfp = choices.of(&[Gfp::NOWAIT, Gfp::KERNEL, Gfp::KERNEL | Gfp::NORETRY]);
                requests.note(leaves[nth % 2].charge_with(BYTES, gfp))
            });
        };
        never_refused(THREADS, work, quietly);
        drop(slots);
        assert_unused(&tenant, before);
    });
}

#[test]
fn mixed_sizes_fill_a_limit_to_the_byte() {
    const QUOTA: u64 = 3 * BATCH + 1;
    in_each_tier(|| {
        let (_pcpu, tenant) = tenant();
        allow(&tenant, QUOTA * THREADS as u64);
        let work = |_, choices: &mut Choices, requests: &Requests| {
            let (mut held, mut left): (Vec<Charge>, u64) = (Vec::new(), QUOTA);
            for _ in 0..200 {
                let size = [1, 2, 511, 4096, 65_537, BATCH - 1, BATCH, BATCH + 1];
                let bytes = match choices.below(3) {
                    // All that is left, so that the limit is reached.
                    0 => left,
                    _ => choices.of(&size).min(left),
                };
                if bytes > 0 && choices.below(2) == 0 {
                    let Some(charge) = requests.note(tenant.try_charge(bytes)) else { return };
                    left -= bytes;
                    held.push(charge);
                } else if !held.is_empty() {
                    left += held.swap_remove(choices.below(held.len())).bytes();
                }
            }
        };
        never_refused(THREADS, work, quietly);
        assert_unused(&tenant, 0);
    });
}

#[test]
fn siblings_share_the_limit_of_their_parent() {
    const BYTES: u64 = 130_000;
    in_each_tier(|| {
        let (_pcpu, tenant) = tenant();
        // More than a CPU keeps in use at a time.
        let leaves: [Memcg; 20] = children(&tenant);
        allow(&tenant, BYTES * THREADS as u64);
        let before = tenant.current();
        let work = |_, choices: &mut Choices, requests: &Requests| {
            let leaf = &leaves[choices.below(leaves.len())];
            let Some(mut charge) = requests.note(leaf.try_charge(BYTES)) else { return };
            let other = &leaves[choices.below(leaves.len())];
            // Their parent is above both, and is not charged twice.
            requests.note(charge.transfer_to(other));
        };
        never_refused(THREADS, work, quietly);
        assert_unused(&tenant, before);
    });
}

#[test]
fn charges_that_grow_and_shrink_stay_within_a_limit() {
    const BYTES: u64 = 99_999;
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let [middle] = children(&tenant);
        let [leaf] = children(&middle);
        allow(&middle, THREADS as u64 * BYTES);
        allow(&tenant, THREADS as u64 * BYTES);
        let before = tenant.current();
        let held: [Mutex<Charge>; THREADS] = std::array::from_fn(|nth| {
            Mutex::new([&leaf, &middle][nth % 2].charge(1).expect("one of many bytes"))
        });
        let work = |thread: usize, choices: &mut Choices, requests: &Requests| {
            move_to(cpus[thread % 2]);
            for _ in 0..200 {
                let mut charge = held[choices.below(THREADS)].lock();
                let free = BYTES - charge.bytes();
                if free > 0 {
                    let more = choices.of(&[free, free, 1 + free / 3]);
                    let gfp = choices.of(&[Gfp::NOWAIT, Gfp::KERNEL]);
                    requests.note(charge.grow_with(more.min(free), gfp));
                } else {
                    let part = charge.split(choices.of(&[1, BYTES / 2])).expect("it holds so much");
                    let less = choices.of(&[charge.bytes() - 1, charge.bytes() / 2]);
                    charge.shrink(less).expect("it holds so much");
                    charge.merge(part).expect("of the same cgroup");
                }
            }
        };
        never_refused(THREADS, work, quietly);
        drop(held);
        assert_unused(&tenant, before);
    });
}

#[test]
fn per_cpu_areas_and_charges_share_a_limit() {
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (pcpu, tenant) = tenant();
        let new = |gfp| PerCpu::<[u64; 2048]>::zeroed_in(&pcpu, gfp | Gfp::ACCOUNT);
        let bytes = {
            let _in = tenant.enter();
            let _area = new(Gfp::KERNEL).expect("no limit yet");
            tenant.current()
        };
        allow(&tenant, THREADS as u64 * bytes);
        let slots = Slots::new(cpus);
        let work = |thread, choices: &mut Choices, requests: &Requests| {
            let _in = tenant.enter();
            slots.exchange(thread, choices, |_, choices| {
                if choices.below(2) == 0 {
                    return Some((requests.note(tenant.try_charge(bytes)), None));
                }
                match new(choices.of(&[Gfp::KERNEL, Gfp::NOWAIT])) {
                    // No populated memory: no limit stands against it.
                    Err(AllocError::NoRoom { .. }) => None,
                    result => Some((None, requests.note(result))),
                }
            });
        };
        never_refused(THREADS, work, quietly);
        drop(slots);
        assert_unused(&tenant, 0);
    });
}

#[test]
fn drains_and_removals_of_siblings_take_nothing_from_a_limit() {
    const BYTES: u64 = 100_000;
    in_each_tier(|| {
        let (pcpu, tenant) = tenant();
        let leaves: [Memcg; 3] = children(&tenant);
        let before = tenant.current();
        let words = {
            let child = tenant.create("child").expect("no limit yet");
            let words = tenant.current() - before;
            child.remove().expect("it has no children");
            words
        };
        tenant.drain();
        // Each thread has one charge, and one child at most.
        allow(&tenant, THREADS as u64 * (BYTES + words));
        let work = |thread: usize, choices: &mut Choices, requests: &Requests| {
            if choices.below(4) > 0 {
                let leaf = &leaves[choices.below(3)];
                drop(requests.note(leaf.try_charge(BYTES)));
                return;
            }
            let child = requests.note(tenant.create(&format!("of {thread}")));
            let Some(child) = child else { return };
            let charge = requests.note(child.charge(BYTES));
            // Some are removed while they hold the charge, others when it is in a stock.
            let (held, dropped) =
                if choices.below(2) == 0 { (charge, None) } else { (None, charge) };
            drop(dropped);
            child.remove().expect("it has no children");
            drop(held);
        };
        let nth = AtomicU64::new(0);
        let disturb = || match nth.fetch_add(1, Relaxed) % 4 {
            0 => drop(tenant.drain()),
            1 => drop(leaves[0].drain()),
            2 => drop(tenant.snapshot()),
            _ => drop(pcpu.root().drain()),
        };
        never_refused(THREADS, work, disturb);
        assert_unused(&tenant, before);
    });
}

/// What a transfer takes out of a stock is charged above both cgroups as well.
#[test]
fn transfers_between_siblings_take_nothing_from_the_limit_above() {
    const SHARE: u64 = 100_000;
    in_each_tier(|| {
        let (_pcpu, tenant) = tenant();
        let leaves: [Memcg; 2] = children(&tenant);
        allow(&tenant, 2 * SHARE);
        let before = tenant.current();
        let work = |nth: usize, _: &mut Choices, requests: &Requests| {
            for bytes in [SHARE / 8, SHARE / 2, SHARE] {
                if let Some(mut charge) = requests.note(leaves[nth].try_charge(bytes)) {
                    requests.note(charge.transfer_to(&leaves[1 - nth]));
                }
            }
        };
        never_refused(2, work, quietly);
        assert_unused(&tenant, before);
    });
}
