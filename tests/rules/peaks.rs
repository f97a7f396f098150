//! What a reader of peaks sees after a reset.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use percpu_memcg::Limit;

use crate::{stay, tenant};

#[test]
fn a_reset_does_not_count_what_stocks_hold() {
    stay();
    let (_pcpu, memcg) = tenant();
    let leaf = memcg.create("leaf").unwrap();
    let own = memcg.current();
    for (payer, memcg) in [(&leaf, &leaf), (&leaf, &memcg)] {
        let own = if memcg == &leaf { 0 } else { own };
        drop(payer.charge(200_000).unwrap());
        assert!(memcg.cached() > 1000, "the end of a charge fills a stock");
        let reader = memcg.peak_reader();
        assert_eq!(reader.read(), 200_000 + own);
        for held in [0, 100, 5000] {
            let charge = payer.charge(held).unwrap();
            drop(payer.charge(50_000).unwrap());
            reader.reset();
            assert_eq!(reader.read(), own + held, "usage at the reset");
            drop(charge);
            assert_eq!(reader.read(), own + held, "which is the most so far");
        }
        assert_eq!(memcg.peak(), 200_000 + own);
    }
}

/// What other CPUs' stocks hold does not count either.
#[test]
fn a_reset_does_not_count_what_stocks_of_other_cpus_hold() {
    let cores = core_affinity::get_core_ids().expect("the thread may run somewhere");
    let (_pcpu, memcg) = tenant();
    for core in cores.iter().take(4) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(core_affinity::set_for_current(*core));
                drop(memcg.charge(100_000).unwrap());
            });
        });
    }
    let reader = memcg.peak_reader();
    reader.reset();
    assert_eq!((reader.read(), memcg.cached()), (0, 0));
}

#[test]
fn after_a_reset_the_peak_follows_every_charge_to_the_byte() {
    stay();
    let (_pcpu, memcg) = tenant();
    drop(memcg.charge(1 << 20).unwrap());
    let reader = memcg.peak_reader();
    reader.reset();
    let mut most = 0;
    for bytes in [1, 48, 1000, 999, 70_000, 69_999, 300_000] {
        let held = memcg.charge(bytes).unwrap();
        most = most.max(bytes);
        assert_eq!(reader.read(), most);
        let other = memcg.charge(10).unwrap();
        drop((held, other));
        most = most.max(bytes + 10);
        assert_eq!(reader.read(), most);
    }
    // Refused charges are none.
    memcg.set_max(Limit::bytes(most)).unwrap();
    assert!(memcg.try_charge(most + 1).is_err());
    assert_eq!(reader.read(), most);
}

#[test]
fn readers_are_reset_each_for_itself_and_again() {
    let (_pcpu, memcg) = tenant();
    let [one, two] = [memcg.peak_reader(), memcg.peak_reader()];
    one.reset();
    drop(memcg.charge(3000).unwrap());
    two.reset();
    drop(memcg.charge(2000).unwrap());
    assert_eq!((one.read(), two.read()), (3000, 2000));
    one.reset();
    drop(memcg.charge(1000).unwrap());
    assert_eq!((one.read(), two.read(), memcg.peak()), (1000, 2000, 3000));
}

/// A charge that is undone counts in no peak, unless its bytes were read.
#[test]
fn no_peak_is_lower_than_what_was_read() {
    for reads_current in [false, true] {
        let (_pcpu, memcg) = tenant();
        memcg.set_high(Limit::bytes(0)).unwrap();
        let reader = Arc::new(memcg.peak_reader());
        reader.reset();
        let read = Arc::new(Mutex::new((0, 0)));
        let _callback = memcg.on_high({
            let (memcg, reader, read) = (memcg.clone(), Arc::clone(&reader), Arc::clone(&read));
            move |_| {
                *read.lock() = match reads_current {
                    true => (memcg.current(), reader.read()),
                    false => (reader.read(), reader.read()),
                };
                resume_unwind(Box::new("the charge is undone"))
            }
        });
        assert!(catch_unwind(AssertUnwindSafe(|| drop(memcg.charge(1000)))).is_err());
        assert_eq!(memcg.current(), 0, "nothing is charged");
        assert_eq!(*read.lock(), (1000, 1000));
        assert_eq!((memcg.peak(), reader.read()), (1000, 1000));
    }
}
