//! Threads that come and go, and what their thread-local variables do at their end.

use std::alloc::System;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use percpu_memcg::{Limit, Memcg};

use crate::{Block, HEAP, layout, tenant, unreported};

type Parcel = Vec<Block<System>>;

/// Numbers that differ from thread to thread.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (self.0 >> 33) % end
    }
}

/// Allocates for cgroups in turn, resizes, sends half of it to another thread, and frees what comes.
fn churn(nth: u64, region: &Memcg, to: &Sender<Parcel>, from: &Receiver<Parcel>) {
    let mut numbers = Numbers(nth);
    for round in 0..60 {
        let tenant = region.create(&format!("tenant-{nth}-{round}")).unwrap();
        tenant.set_max(Limit::bytes(1 << 20)).unwrap();
        let mut parcel = Vec::with_capacity(200);
        for _ in 0..200 {
            let align = 1 << numbers.below(8);
            let most = if numbers.below(20) == 0 { 50_000 } else { 500 };
            let size = 1 + numbers.below(most);
            let layout = layout(size as usize, align);
            parcel.extend(tenant.scope(|| Block::new(&HEAP, layout)));
            let place = numbers.below(parcel.len() as u64) as usize;
            // Refused at times.
            let _is_resized = parcel[place].resize(1 + numbers.below(1000) as usize);
            if numbers.below(4) == 0 {
                parcel.swap_remove(place);
            }
        }
        let sent = parcel.split_off(parcel.len() / 2);
        to.send(sent).unwrap();
        // With what it holds, here and on the way.
        tenant.remove().unwrap();
        parcel.clear();
        from.try_iter().for_each(drop);
    }
}

#[test]
fn eight_threads_free_each_others_blocks_while_cgroups_come_and_go() {
    let region = tenant("churn");
    let mut threads = Vec::new();
    let (tos, mut froms): (Vec<_>, Vec<_>) = (0..8).map(|_| channel::<Parcel>()).unzip();
    froms.rotate_left(3);
    for (nth, (to, from)) in (0..).zip(tos.into_iter().zip(froms)) {
        let region = region.clone();
        threads.push(thread::spawn(move || {
            churn(nth, &region, &to, &from);
            drop(to);
            from.iter().for_each(drop);
        }));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(region.current(), 0);
    assert_eq!(region.nr_dying_descendants(), 0);
    region.remove().unwrap();
}

/// Allocates and frees when the thread-local value is dropped.
struct AtExit {
    held: Vec<String>,
    in_scope: Option<Memcg>,
    says: &'static AtomicBool,
}

impl Drop for AtExit {
    fn drop(&mut self) {
        let more: Vec<String> = (0..100).map(|nth| format!("at the end {nth}")).collect();
        if let Some(tenant) = &self.in_scope {
            let before = tenant.current();
            let list = tenant.scope(|| vec![0_u8; 92]);
            assert_eq!(tenant.current(), before + 100, "scopes work until the end");
            drop(list);
        }
        self.held.truncate(3);
        self.held.extend(more);
        self.says.store(true, SeqCst);
    }
}

thread_local! {
    // One is dropped before what the library has for the thread, and one after it: which one depends
    // on what is used first.
    static FIRST: RefCell<Option<AtExit>> = const { RefCell::new(None) };
    static LAST: RefCell<Option<AtExit>> = const { RefCell::new(None) };
}

#[test]
fn thread_local_values_allocate_and_free_at_the_end_of_a_thread() {
    static SAID: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
    let (attached, scope) = (tenant("attached"), tenant("scope"));
    let (of_thread, in_scope) = (attached.clone(), scope.clone());
    let worker = thread::spawn(move || {
        let at_exit = |says| AtExit {
            held: of_thread.scope(|| (0..50).map(|nth| format!("held {nth}")).collect()),
            in_scope: Some(in_scope.clone()),
            says,
        };
        FIRST.set(Some(at_exit(&SAID[0])));
        of_thread.attach_thread().unwrap();
        LAST.set(Some(at_exit(&SAID[1])));
    });
    worker.join().unwrap();
    assert!(SAID.iter().all(|said| said.load(SeqCst)));
    assert_eq!((attached.current(), scope.current()), (0, 0));
    attached.remove().unwrap();
}

#[test]
fn threads_leave_nothing_behind() {
    let tenant = tenant("short-threads");
    for round in 0..200 {
        let work = move || (0..round).map(|nth| vec![nth; 10]).collect::<Vec<_>>().len();
        assert_eq!(tenant.spawn(work).unwrap().join().unwrap(), round);
    }
    assert_eq!(tenant.current(), 0);
}

#[test]
fn panics_uncharge_what_they_unwind() {
    let tenant = tenant("panics");
    for depth in [1, 10, 100] {
        let caught = || catch_unwind(AssertUnwindSafe(|| unwind(depth)));
        let panicked = unreported(|| tenant.scope(caught));
        assert_eq!(*panicked.unwrap_err().downcast::<String>().unwrap(), "deep 0");
        assert_eq!(tenant.current(), 0);
    }
}

fn unwind(depth: usize) {
    let held = vec![depth; 100];
    assert!(depth > 0, "deep {depth}");
    unwind(depth - 1);
    drop(held);
}
