//! Real mappings: where they are, what backs them, and what happens when the kernel says no.

use std::fs::File;
use std::os::unix::fs::FileExt;

use std::sync::atomic::{AtomicU8, Ordering};

use super::*;

fn machine() -> Machine {
    Machine::uniform(2).unwrap()
}

fn reserve(pages: usize) -> Reservation {
    Reservation::new(&machine(), pages * page_size(), page_size()).unwrap()
}

/// A byte of the reservation.
fn byte(reservation: &Reservation, offset: usize) -> &AtomicU8 {
    assert!(offset < reservation.len());
    // SAFETY: inside the mapping, which outlives the borrow; tests touch it only through this.
    unsafe { AtomicU8::from_ptr(reservation.at(offset).as_ptr()) }
}

fn load(reservation: &Reservation, offset: usize) -> u8 {
    byte(reservation, offset).load(Ordering::Relaxed)
}

fn store(reservation: &Reservation, offset: usize, value: u8) {
    byte(reservation, offset).store(value, Ordering::Relaxed);
}

/// Which pages have memory of their own: present and exclusively mapped, so that the zero page
/// shared by everything that was only read does not count.
fn backed(reservation: &Reservation) -> Vec<bool> {
    const PRESENT_AND_EXCLUSIVE: u64 = 1 << 63 | 1 << 56;
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let first = reservation.base().addr().get() / page_size();
    let pages = first..first + reservation.len() / page_size();
    pages
        .map(|page| {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, page as u64 * 8).unwrap();
            u64::from_ne_bytes(entry) & PRESENT_AND_EXCLUSIVE == PRESENT_AND_EXCLUSIVE
        })
        .collect()
}

fn discard(reservation: &Reservation, range: Range<usize>) -> bool {
    discard_all(reservation, [range])
}

fn discard_all<const N: usize>(reservation: &Reservation, ranges: [Range<usize>; N]) -> bool {
    // SAFETY: tests hold no reference across this call and expect zero bytes after it.
    unsafe { reservation.discard(ranges.into_iter()) }
}

#[test]
fn reservations_start_where_they_were_asked_to() {
    let page = page_size();
    for shift in 0..12 {
        for pages in [1, 3, 64] {
            let (bytes, align) = (pages * page, page << shift);
            let reservation = Reservation::new(&machine(), bytes, align).unwrap();
            assert_eq!(reservation.base().addr().get() % align, 0);
            assert_eq!(reservation.len(), bytes);
            store(&reservation, 0, 1);
            store(&reservation, bytes - 1, 2);
        }
    }
}

#[test]
fn untouched_memory_is_not_backed() {
    // Large and aligned enough for huge pages.
    let reservation = Reservation::new(&machine(), 4 << 20, 2 << 20).unwrap();
    store(&reservation, 0, 1);
    let backed = backed(&reservation);
    assert!(backed[0] && !backed[1..].contains(&true), "one touched byte backs one page");
}

#[test]
#[should_panic(expected = "not whole pages")]
fn part_of_a_page_cannot_be_reserved() {
    let _ = Reservation::new(&machine(), page_size() + 1, page_size());
}

#[test]
#[should_panic(expected = "cannot align")]
fn alignment_must_be_a_power_of_two() {
    let _ = Reservation::new(&machine(), page_size(), 3 * page_size());
}

#[test]
fn more_than_the_address_space_is_out_of_memory() {
    let page = page_size();
    for (bytes, align) in
        [(usize::MAX / page * page, page << 1), (usize::MAX / 2 / page * page, page)]
    {
        let error = Reservation::new(&machine(), bytes, align).unwrap_err();
        assert_eq!((error.op, error.bytes), (MapOp::Reserve, bytes));
        assert!(error.is_memory());
    }
}

#[test]
fn prefault_backs_the_pages_that_cover_the_range() {
    let page = page_size();
    let reservation = reserve(6);
    reservation.prefault(page + 1..2 * page + 1).unwrap();
    assert_eq!(backed(&reservation), [false, true, true, false, false, false]);
    reservation.prefault(4 * page..5 * page).unwrap();
    assert_eq!(backed(&reservation), [false, true, true, false, true, false]);
}

#[test]
fn prefault_keeps_what_is_there() {
    let reservation = reserve(2);
    store(&reservation, 7, 0x5a);
    reservation.prefault(0..reservation.len()).unwrap();
    assert_eq!(load(&reservation, 7), 0x5a);
}

#[test]
fn discard_zeroes_whole_pages_inside_and_leaves_the_fringe() {
    let page = page_size();
    let reservation = reserve(4);
    let marks = [0, page - 1, page, 2 * page, 3 * page - 1, 3 * page, 4 * page - 1];
    for mark in marks {
        store(&reservation, mark, 0xff);
    }
    assert!(discard(&reservation, page - 1..3 * page + 1));
    assert_eq!(marks.map(|mark| load(&reservation, mark)), [0xff, 0xff, 0, 0, 0, 0xff, 0xff]);
}

#[test]
fn discard_gives_memory_back() {
    let page = page_size();
    let reservation = reserve(3);
    reservation.prefault(0..3 * page).unwrap();
    assert!(discard(&reservation, page..2 * page));
    assert_eq!(backed(&reservation), [true, false, true]);
}

/// More ranges than one system call takes, some of them without a whole page, and some refused.
#[test]
fn many_ranges_are_discarded_together() {
    const RANGES: usize = 150;
    let page = page_size();
    for refused in [None, Some(1), Some(64), Some(65), Some(150)] {
        let reservation = reserve(2 * RANGES);
        reservation.prefault(0..reservation.len()).unwrap();
        let ranges: [_; 2 * RANGES] = std::array::from_fn(|nth| match nth % 2 {
            0 => nth * page..(nth + 1) * page,
            _ => nth * page + 1..(nth + 1) * page,
        });
        refused
            .iter()
            .for_each(|&nth| machine_of(&reservation).fail_nth(Some(MapOp::Discard), nth));
        assert_eq!(discard_all(&reservation, ranges), refused.is_none());
        let is_left = |nth| nth % 2 == 1 || refused == Some(nth / 2 + 1);
        assert_eq!(backed(&reservation), (0..2 * RANGES as u64).map(is_left).collect::<Vec<_>>());
    }
}

fn machine_of(reservation: &Reservation) -> &crate::sys::FaultInjection {
    reservation.machine.faults()
}

#[test]
fn ranges_are_clipped_and_empty_ones_do_nothing() {
    let page = page_size();
    let reservation = reserve(2);
    let calls_before = reservation.machine.faults().operations();

    assert!(discard(&reservation, 1..2 * page - 1), "no whole page inside");
    assert!(discard(&reservation, 2 * page..usize::MAX));
    assert!(discard(&reservation, page..page));
    #[expect(clippy::reversed_empty_ranges, reason = "a caller may compute one")]
    let reversed = 3..1;
    reservation.prefault(reversed).unwrap();
    reservation.prefault(2 * page + 5..usize::MAX).unwrap();
    reservation.bind(0..page - 1, NodeId::new(0));
    assert_eq!(reservation.machine.faults().operations(), calls_before, "no system call was due");

    reservation.prefault(page..usize::MAX).unwrap();
    assert_eq!(backed(&reservation), [false, true]);
    assert!(discard(&reservation, 0..usize::MAX));
    assert_eq!(backed(&reservation), [false, false]);
}

#[test]
fn binding_is_a_hint_on_every_machine() {
    let reservation = reserve(8);
    for node in [0, 1, 63, 64, 1023, 1024, u32::MAX] {
        reservation.bind(0..reservation.len(), NodeId::new(node));
    }
    reservation.prefault(0..reservation.len()).unwrap();
    assert!(backed(&reservation).iter().all(|backed| *backed));
}

#[test]
fn binding_to_a_node_that_exists_reaches_the_kernel() {
    let node = Machine::detect().unwrap();
    let node = node.node_of(node.this_cpu()).unwrap();
    let reservation = reserve(2);
    let result = reservation.prefer(&(0..reservation.len()), node);
    assert!(matches!(result, Ok(()) | Err(Errno::NOSYS | Errno::PERM)), "{result:?}");
}

#[test]
fn each_operation_can_be_made_to_fail_and_then_recovers() {
    let page = page_size();
    let machine = machine();
    let reserve = || Reservation::new(&machine, page, page);
    let reservation = reserve().unwrap();
    store(&reservation, 0, 9);
    let run = |op| match op {
        MapOp::Reserve => reserve().map(drop),
        _ => reservation.prefault(0..1),
    };
    for op in [MapOp::Reserve, MapOp::Prefault] {
        machine.faults().fail_nth(Some(op), 1);
        let error = run(op).unwrap_err();
        assert_eq!((error.op, error.bytes, error.errno()), (op, page, libc::ENOMEM));
        run(op).unwrap();
    }
    // Nobody hears of the others.
    machine.faults().fail_all(None);
    reservation.bind(0..page, NodeId::new(0));
    assert!(!discard(&reservation, 0..page));
    assert_eq!(load(&reservation, 0), 9);
    machine.faults().clear();
    reservation.bind(0..page, NodeId::new(0));
    assert!(discard(&reservation, 0..page));
    assert_eq!(load(&reservation, 0), 0);
    assert_eq!(machine.faults().operations(), 1 + 4 * 2);
}

#[test]
fn prefault_on_one_thread_loses_no_update_of_another() {
    const ROUNDS: usize = 20_000;
    let reservation = reserve(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                byte(&reservation, 0).fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..ROUNDS {
            reservation.prefault(0..page_size()).unwrap();
        }
    });
    assert_eq!(load(&reservation, 0), (ROUNDS % 256) as u8);
}

#[test]
fn a_reservation_outlives_its_machine_and_moves_to_threads() {
    let reservation = {
        let machine = machine();
        Reservation::new(&machine, page_size(), page_size()).unwrap()
    };
    std::thread::spawn(move || store(&reservation, 0, 1)).join().unwrap();
}
