//! The sequences that charge, which go through a gate.
//!
//! What they change is no object of the caller, so nothing is compared while they are under way:
//! a charge and its end are stopped at each instruction of each sequence that they use, and the
//! cgroup's usage must be what it is without that.

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::BTreeSet;

use percpu_memcg::machine::CpuId;
use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator, PerCpuPool};

use crate::plan::Cpus;
use crate::sequence::{Place, Sequence, Stop, find_used};
use crate::tracee::{Event, Tracee};

/// What is charged and uncharged each time, and stays when that is over.
const AMOUNT: u64 = 512;

/// How often a stop is tried that another way was taken around.
const ATTEMPTS: usize = 3;

/// What a child found, at the same address in its tracer.
pub(crate) struct Found(pub(crate) Cell<u64>);

impl Found {
    /// Returns it, and leaves 0, which is nothing that is found.
    fn take_in_child(&self, tracee: &Tracee) -> Result<u64, String> {
        let address = (&raw const self.0) as u64;
        let bytes = tracee.memory.read(address, size_of::<u64>())?;
        tracee.memory.write(address, &[0; size_of::<u64>()])?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| "no such memory")?))
    }
}

/// What the three sequences left, in one number that is not 0.
pub(crate) fn usage(charged: u64, percpu: u64, rest: u64) -> u64 {
    1 + charged + (percpu << 20) + (rest << 40)
}

#[test]
fn a_charge_is_exact_wherever_it_is_aborted() {
    if super::is_impossible() {
        return;
    }
    let pcpu: PerCpuAllocator = super::real();
    let tenant = pcpu.root().create("tenant").expect("room");
    let found = Found(Cell::new(0));
    let operation = || {
        let in_tenant = tenant.enter();
        let charge = tenant.charge(AMOUNT);
        let object = PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT);
        let (current, percpu) = (tenant.current(), tenant.stat().percpu);
        drop((charge, object, in_tenant));
        found.0.set(usage(current - percpu, percpu, tenant.current() + tenant.stat().percpu));
    };
    operation();
    let expected = found.0.get();
    assert_eq!(expected, usage(AMOUNT, (expected - 1) >> 20, 0), "nothing remains");
    assert_ne!((expected - 1) >> 20, 0, "the object is charged");

    let cpus = super::usable_cpus();
    let stopped = stop_everywhere(&operation, &found, expected, cpus);
    let (sequences, stops) = stopped.unwrap_or_else(|failure| panic!("{failure}"));
    println!("aborts: charges: {sequences} sequences, {stops} stops");
    assert!(sequences >= 3, "take, put and the statistics");
}

#[test]
fn an_area_is_handed_out_once_wherever_it_is_aborted() {
    if super::is_impossible() {
        return;
    }
    let pcpu: PerCpuAllocator = super::real();
    let found = Found(Cell::new(0));
    let layout = Layout::new::<u64>();
    let taken = Cell::new(pcpu.stats().nr_alloc);
    let operation = || {
        let areas = [(); 3].map(|()| pcpu.alloc(layout, Gfp::KERNEL).expect("room"));
        let [a, b, c] = areas;
        let is_each_another = u64::from(a != b && b != c && a != c);
        // SAFETY: nobody uses them.
        areas.iter().for_each(|area| unsafe { pcpu.free(*area) }.expect("it is live"));
        // SAFETY: they are not live.
        let again = areas.iter().filter(|area| unsafe { pcpu.free(**area) }.is_err()).count();
        let stats = pcpu.stats();
        let counted = stats.nr_alloc - taken.replace(stats.nr_alloc);
        let is_sound = u64::from(pcpu.verify().is_ok());
        found.0.set(
            1 + is_each_another
                + (again as u64) * 10
                + counted * 100
                + stats.nr_cur_alloc * 10_000
                + is_sound * 1_000_000,
        );
    };
    operation();
    let expected = 1 + 1 + 3 * 10 + 3 * 100 + 1_000_000;
    assert_eq!(found.0.get(), expected);
    let stopped = stop_everywhere(&operation, &found, expected, super::usable_cpus());
    let (sequences, stops) = stopped.unwrap_or_else(|failure| panic!("{failure}"));
    println!("aborts: areas: {sequences} sequences, {stops} stops");
    assert!(sequences >= 3, "pop, count and push");
}

#[test]
fn pool_neither_loses_nor_doubles_object_wherever_it_is_aborted() {
    if super::is_impossible() {
        return;
    }
    let pcpu: PerCpuAllocator = super::real();
    let [spare, tenant] = ["spare", "tenant"].map(|name| pcpu.root().create(name).expect("room"));
    let pool = PerCpuPool::new_for(&spare, |_| 0_u64, |_| ()).expect("room");
    drop([(); 2].map(|()| pool.take(&tenant).expect("room")));
    let one = spare.stat().charged / 2;
    let found = Found(Cell::new(0));
    let operation = || {
        let objects = [(); 2].map(|()| pool.take(&tenant).expect("room"));
        let [first, second] = objects.each_ref().map(|object| object.get(CpuId::new(0)));
        let is_doubled = first.map(std::ptr::from_ref) == second.map(std::ptr::from_ref);
        let charged = tenant.current();
        drop(objects);
        // How many there are depends on the CPUs that the thread has been on.
        let is_lost = spare.stat().charged != pool.idle() as u64 * one;
        found.0.set(usage(charged, tenant.current(), (is_doubled || is_lost).into()));
    };
    operation();
    let expected = usage(2 * one, 0, 0);
    assert_eq!(found.0.get(), expected);

    let stopped = stop_everywhere(&operation, &found, expected, super::usable_cpus());
    let (sequences, stops) = stopped.unwrap_or_else(|failure| panic!("{failure}"));
    println!("aborts: pools: {sequences} sequences, {stops} stops");
    assert!(sequences >= 4, "take and put of bytes, pop and push");
}

/// Returns how many sequences there were, and how many stops.
pub(crate) fn stop_everywhere(
    operation: &dyn Fn(),
    found: &Found,
    expected: u64,
    cpus: Cpus,
) -> Result<(usize, usize), String> {
    let tracee = Tracee::new(operation)?;
    // Stocks of all CPUs have something, and nothing is found twice.
    for cpu in cpus.all() {
        tracee.move_to(cpu)?;
        tracee.proceed()?;
    }
    let sequences: BTreeSet<_> = find_used(&tracee)?.into_iter().collect();
    let mut stops = 0;
    for &descriptor in &sequences {
        let sequence = Sequence::new(descriptor)?;
        for stop in &sequence.stops {
            for to in cpus.all() {
                // A stock that is full takes nothing: the way around it gives some of it back.
                let stopped = (0..ATTEMPTS).find_map(|_| {
                    let attempt = attempt(&tracee, &sequence, stop, [cpus.home, to]);
                    let end = attempt.and_then(|was_reached| {
                        let left = found.take_in_child(&tracee)?;
                        let is_exact = left == expected;
                        is_exact
                            .then_some(was_reached)
                            .ok_or(format!("{left:#x}, not {expected:#x}"))
                    });
                    (end != Ok(false)).then_some(end)
                });
                let stopped = stopped.unwrap_or(Err("never reached".into()));
                stopped.map_err(|failure| format!("{stop:x?}: {failure}"))?;
                stops += 1;
            }
        }
    }
    Ok((sequences.len(), stops))
}

/// One operation, stopped there and moved from CPU to CPU. Returns whether it was.
fn attempt(
    tracee: &Tracee,
    sequence: &Sequence,
    stop: &Stop,
    [from, to]: [usize; 2],
) -> Result<bool, String> {
    tracee.move_to(from)?;
    let instruction = tracee.plant(stop.address)?;
    let event = tracee.proceed()?;
    tracee.restore(stop.address, instruction)?;
    match event {
        Event::Checkpoint => return Ok(false),
        Event::Trap(at) if at == stop.address + 1 => tracee.jump(stop.address)?,
        Event::Trap(at) => return Err(format!("trap at {at:#x}")),
    }
    tracee.move_to(to)?;
    let is_aborted = sequence.is_abort(tracee.step()?);
    if is_aborted != (stop.place == Place::Inside) {
        return Err(format!("aborted: {is_aborted}"));
    }
    match tracee.proceed()? {
        Event::Checkpoint => Ok(true),
        Event::Trap(at) => Err(format!("trap at {at:#x}")),
    }
}
