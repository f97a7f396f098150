//! Who runs balance work.

use super::*;

/// Leaves three fully free chunks behind, two of which balance work destroys.
fn leave_spare_chunks(pcpu: &PerCpuAllocator) {
    let area = |_| Area::new(pcpu, 32 << 10, 4, Gfp::KERNEL).unwrap();
    let areas: Vec<_> = (0..3).map(area).collect();
    assert_eq!(pcpu.stats().nr_chunks, 4);
    areas.into_iter().for_each(Area::free);
}

fn balanced_by(mode: BalanceMode) -> PerCpuAllocator {
    builder().unit_size(32 << 10).balance(mode).build().unwrap()
}

#[test]
fn manual_balance_waits_for_the_caller() {
    let pcpu = balanced_by(BalanceMode::Manual);
    assert!(!pcpu.balance(), "nothing to do");
    leave_spare_chunks(&pcpu);
    Area::new(&pcpu, 4, 4, Gfp::KERNEL).unwrap().free();
    assert_eq!((pcpu.is_balance_pending(), pcpu.stats().nr_chunks), (true, 4));
    assert!(pcpu.balance());
    assert_eq!((pcpu.is_balance_pending(), pcpu.stats().nr_chunks), (false, 2));
    assert!(!pcpu.balance());
    assert_eq!(pcpu.verify(), Ok(()));
}

#[test]
fn inline_balance_is_done_when_the_operation_returns() {
    let pcpu = balanced_by(BalanceMode::Inline);
    leave_spare_chunks(&pcpu);
    assert_eq!((pcpu.is_balance_pending(), pcpu.stats().nr_chunks), (false, 2));
}

#[test]
fn background_balance_is_done_soon() {
    let pcpu = balanced_by(BalanceMode::Background);
    let deadline = Instant::now() + Duration::from_secs(20);
    for _ in 0..20 {
        let areas: Vec<_> =
            (0..3).map(|_| Area::new(&pcpu, 32 << 10, 4, Gfp::KERNEL).unwrap()).collect();
        areas.into_iter().for_each(Area::free);
        while pcpu.is_balance_pending() || pcpu.stats().nr_chunks > 2 {
            assert!(Instant::now() < deadline, "{:?}", pcpu.stats());
            thread::yield_now();
        }
    }
    assert_eq!(pcpu.verify(), Ok(()));
}

#[test]
fn nonblocking_requests_leave_the_work_to_the_next_that_may() {
    let pcpu = balanced_by(BalanceMode::Inline);
    let atomic = |size| Area::new(&pcpu, size, 4, Gfp::NOWAIT);
    let most = atomic(6 << 12).unwrap();
    assert!(pcpu.is_balance_pending(), "one page of the first chunk's seven is left");
    let refused = atomic(2 << 12).map(|_| ()).unwrap_err();
    assert_eq!(refused, AllocError::NoRoom { size: 2 << 12 });
    assert_eq!(pcpu.stats().nr_chunks, 1, "no chunk is made for who may not block");
    Area::new(&pcpu, 4, 4, Gfp::KERNEL).unwrap().free();
    assert!(!pcpu.is_balance_pending());
    atomic(2 << 12).expect("the reserve was filled").free();
    most.free();
}

#[test]
fn background_worker_fills_reserve_that_atomic_request_missed() {
    let pcpu = balanced_by(BalanceMode::Background);
    let deadline = Instant::now() + Duration::from_secs(20);
    let areas: Vec<_> = std::iter::repeat_with(|| {
        loop {
            match Area::new(&pcpu, 3 << 12, 4, Gfp::NOWAIT) {
                Ok(area) => break area,
                Err(error) => assert!(error.is_no_room() && Instant::now() < deadline, "{error}"),
            }
            thread::yield_now();
        }
    })
    .take(10)
    .collect();
    assert!(areas.iter().all(|area| area.holds(0)));
    areas.into_iter().for_each(Area::free);
}
