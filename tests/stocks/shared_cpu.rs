//! Figures while other threads charge at the same time, on the same CPU and on another one.

use std::hint;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use percpu_memcg::{Limit, PerCpuAllocator};

use crate::tiers::in_each_tier;
use crate::{budget, move_to, tenant, two_cpus};

/// A thread that is preempted in the middle of a miss holds its CPU's lock. A charge of another
/// thread uses its own stock all the same, so that usage grows by no more than is used.
#[test]
fn a_leafs_peak_is_exact_beside_another_thread_on_its_cpu() {
    in_each_tier(|| {
        let Some([cpu, _]) = two_cpus() else { return };
        let pcpu = PerCpuAllocator::new().expect("the machine is readable");
        let [leaf, other] = ["leaf", "other"].map(|name| pcpu.root().create(name).expect("room"));
        let (is_over, began) = (AtomicBool::new(false), Instant::now());
        thread::scope(|scope| {
            scope.spawn(|| {
                move_to(cpu);
                let mut bytes = 0_u64;
                while !is_over.load(Relaxed) {
                    bytes = bytes * 7 % 100_003 + 1;
                    drop(other.charge(300_000 + bytes).expect("no limit"));
                }
            });
            move_to(cpu);
            let (mut most, mut turn) = (0, 0_u64);
            let mut peaks = (0, 0);
            while began.elapsed() < budget() && peaks.0 == peaks.1 {
                turn += 1;
                let bytes = 1000 + turn % 5000 + turn / 1000;
                drop(leaf.charge(bytes).expect("no limit"));
                most = most.max(bytes);
                peaks = (leaf.peak(), most);
            }
            is_over.store(true, Relaxed);
            assert_eq!(peaks.0, peaks.1, "after {turn} charges");
        });
    });
}

/// A charge that begins after the reset is counted, whatever went into stocks during the reset.
#[test]
fn a_reader_counts_charges_that_begin_after_its_reset() {
    const BYTES: u64 = 100_000;
    in_each_tier(|| {
        let Some([here, there]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        drop(tenant.charge(10 * BYTES).expect("no limit"));
        let reader = tenant.peak_reader();
        let (phase, is_over, began) = (AtomicU32::new(0), AtomicBool::new(false), Instant::now());
        thread::scope(|scope| {
            scope.spawn(|| {
                move_to(there);
                while !is_over.load(Relaxed) {
                    drop(tenant.charge(BYTES).expect("no limit"));
                    if phase.load(SeqCst) == 1 {
                        drop(tenant.charge(BYTES).expect("no limit"));
                        phase.store(2, SeqCst);
                        while phase.load(SeqCst) == 2 && !is_over.load(Relaxed) {
                            hint::spin_loop();
                        }
                    }
                }
            });
            move_to(here);
            let (mut low, mut rounds) = (0_u64, 0_u64);
            while began.elapsed() < budget() {
                rounds += 1;
                reader.reset();
                phase.store(1, SeqCst);
                while phase.load(SeqCst) != 2 {
                    hint::spin_loop();
                }
                low += u64::from(reader.read() < BYTES);
                phase.store(0, SeqCst);
            }
            is_over.store(true, Relaxed);
            assert_eq!(low, 0, "of {rounds}");
        });
    });
}

/// Without a reader bytes are charged ahead again.
#[test]
fn readers_that_were_dropped_leave_nothing_behind() {
    in_each_tier(|| {
        let Some([here, there]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        drop(tenant.charge(3_000_000).expect("no limit"));
        let began = Instant::now();
        while began.elapsed() < budget() {
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    move_to(there);
                    while !is_over.load(Relaxed) {
                        drop(tenant.charge(300_000).expect("no limit"));
                    }
                });
                move_to(here);
                for _ in 0..500 {
                    let reader = tenant.peak_reader();
                    reader.reset();
                }
                is_over.store(true, Relaxed);
            });
            tenant.drain();
            let _charge = tenant.charge(10_000).expect("no limit");
            assert!(tenant.cached() > 0, "charged ahead, below the peak");
        }
    });
}

/// Of charges that together go above `high`, at least one tells, also where each of them found room
/// to charge ahead.
#[test]
fn charges_that_meet_above_high_tell() {
    const BYTES: u64 = 250_000;
    in_each_tier(|| {
        let Some([here, there]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        drop(tenant.charge(8 * BYTES).expect("no limit"));
        tenant.drain();
        tenant.set_high(Limit::bytes(BYTES + 20_000)).expect("not the root");
        let (meeting, is_over, began) = (Barrier::new(2), AtomicBool::new(false), Instant::now());
        thread::scope(|scope| {
            scope.spawn(|| {
                move_to(there);
                loop {
                    meeting.wait();
                    if is_over.load(SeqCst) {
                        return;
                    }
                    let charge = tenant.charge(BYTES).expect("no limit");
                    meeting.wait();
                    meeting.wait();
                    drop(charge);
                }
            });
            move_to(here);
            let (mut lost, mut rounds) = (0_u64, 0_u64);
            while began.elapsed() < budget() {
                tenant.drain();
                let before = tenant.events().high;
                meeting.wait();
                let charge = tenant.charge(BYTES).expect("no limit");
                meeting.wait();
                rounds += 1;
                lost += u64::from(tenant.events().high == before);
                meeting.wait();
                drop(charge);
            }
            is_over.store(true, SeqCst);
            meeting.wait();
            assert_eq!(lost, 0, "of {rounds}");
        });
    });
}

/// Nothing pays any more, so that nothing refuses.
#[test]
fn a_charge_whose_tree_was_dropped_may_do_anything() {
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    let parent = pcpu.root().create("parent").expect("room");
    let child = parent.create("child").expect("room");
    parent.set_max(Limit::bytes(10_000)).expect("not the root");
    let mut charges = [&parent, &child].map(|memcg| memcg.charge(1000).expect("room"));
    drop((parent, child, pcpu));
    for charge in &mut charges {
        assert_eq!(charge.cgroup(), "");
        charge.grow(1 << 40).expect("no cgroup is asked");
        charge.shrink((1 << 40) - 1).expect("it holds so much");
        drop(charge.split(10).expect("it holds so much"));
        assert_eq!(charge.bytes(), 991);
    }
}
