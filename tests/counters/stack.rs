//! `LocalStack`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use percpu_memcg::Local;
use percpu_memcg::error::StackFull;
use percpu_memcg::this_cpu::{CompactLocal, LocalInt, LocalStack};

use super::*;

type Stacks<const CAP: usize> = PerCpu<LocalStack<u32, CAP>>;

fn stacks<const CAP: usize>(pcpu: &PerCpuAllocator) -> Stacks<CAP> {
    PerCpu::zeroed_in(pcpu, Gfp::KERNEL).unwrap()
}

fn len_on<const CAP: usize>(stacks: &Stacks<CAP>, core: CoreId) -> usize {
    stacks.get(CpuId::new(core.id as u32)).unwrap().len()
}

#[test]
fn what_is_pushed_last_is_popped_first() {
    let ops = prop::collection::vec(prop::option::weighted(0.6, any::<u32>()), 1..60);
    proptest!(cases(), |(ops in ops, nth in 0..ALLOCATORS.len())| {
        let mut stacks = stacks::<5>(&ALLOCATORS[nth]);
        let mut plain: Vec<u32> = Vec::new();
        pinned(|| {
            for op in ops {
                match op {
                    Some(item) if plain.len() < 5 => {
                        assert_eq!(stacks.push(item), Ok(()));
                        plain.push(item);
                    }
                    Some(item) => assert_eq!(stacks.push(item), Err(StackFull(item))),
                    None => assert_eq!(stacks.pop(), plain.pop()),
                }
            }
        });
        plain.reverse();
        let mut drained: Vec<u32> = stacks.drain().take(plain.len() / 2).collect();
        drained.extend(stacks.drain()); // what was not asked for
        assert_eq!(drained, plain);
        assert_eq!((stacks.drain().count(), stacks.pop()), (0, None));
    });
}

#[test]
fn every_cpu_has_its_own_stack() {
    let mut stacks = stacks::<3>(&PerCpuAllocator::new().unwrap());
    pinned(|| {
        for &core in cores() {
            pin(core);
            assert_eq!((stacks.pop(), len_on(&stacks, core)), (None, 0));
            for (found, item) in (0..3).map(|found| (found, core.id as u32 * 10 + found as u32)) {
                assert_eq!(len_on(&stacks, core), found);
                stacks.push(item).unwrap();
            }
            assert_eq!(stacks.push(9), Err(StackFull(9)));
            assert_eq!(len_on(&stacks, core), 3);
        }
        for &core in cores() {
            pin(core);
            assert_eq!(stacks.pop(), Some(core.id as u32 * 10 + 2), "whoever else pushed since");
            assert_eq!((len_on(&stacks, core), stacks.this_cpu().is_empty()), (2, false));
        }
    });
    assert_eq!(stacks.iter().map(|(_, stack)| stack.len()).sum::<usize>(), 2 * cores().len());
    let left: Vec<u32> = stacks.drain().collect();
    let pushed = cores().iter().flat_map(|core| [1, 0].map(|n| core.id as u32 * 10 + n));
    assert_eq!(left, pushed.collect::<Vec<_>>());
    assert!(stacks.iter().all(|(_, stack)| stack.is_empty()));
    assert_eq!(format!("{:?}", stacks.this_cpu()), "LocalStack { len: 0, .. }");
}

#[test]
fn drain_returns_what_lies_on_no_possible_cpu() {
    let mut stacks = stacks::<4>(&elsewhere());
    pinned(|| (0..4).for_each(|item| stacks.push(item).unwrap()));
    assert_eq!(stacks.drain().collect::<Vec<_>>(), [3, 2, 1, 0]);
    pinned(|| assert_eq!((stacks.pop(), stacks.push(4)), (None, Ok(()))));
    assert_eq!(stacks.drain().collect::<Vec<_>>(), [4]);
}

#[test]
fn a_refused_item_comes_back() {
    let stacks = stacks::<0>(&uniform(1));
    let full = stacks.push(7).unwrap_err();
    assert_eq!((full, full.0, stacks.pop()), (StackFull(7), 7, None));
    assert_eq!(full.to_string(), "this CPU's stack has no room");
}

#[test]
fn items_have_any_width() {
    fn fill<N: LocalInt + From<bool>, const CAP: usize>(items: [N; CAP]) {
        let mut stacks =
            PerCpu::<LocalStack<N, CAP>>::zeroed_in(&ALLOCATORS[0], Gfp::KERNEL).unwrap();
        pinned(|| {
            for _ in 0..2 {
                items.iter().for_each(|item| stacks.push(*item).unwrap());
                assert_eq!(stacks.push(items[0]), Err(StackFull(items[0])));
                items.iter().rev().for_each(|item| assert_eq!(stacks.pop(), Some(*item)));
                assert_eq!(stacks.pop(), None);
            }
            items.iter().for_each(|item| stacks.push(*item).unwrap());
        });
        assert!(stacks.drain().eq(items.into_iter().rev()));
    }
    fill([1, u8::MAX, 0]);
    fill([-1, i8::MIN, i8::MAX, 0, 5, 6, 7, 8, 9]);
    fill([1, u16::MAX, 0x0102]);
    fill([-1, i16::MIN, i16::MAX]);
    fill([1, u32::MAX, 0x0102_0304]);
    fill([-1, i32::MIN, i32::MAX]);
    fill([1, u64::MAX, 0x0102_0304_0506_0708]);
    fill([-1, i64::MIN, i64::MAX]);
    fill([1, usize::MAX]);
    fill([-1, isize::MIN]);
}

#[test]
fn nothing_is_lost_or_doubled_in_many_threads() {
    const EACH: u64 = 20_000;
    for pcpu in ALLOCATORS.iter() {
        let mut stacks = PerCpu::<LocalStack<u64, 7>>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        let (seen, refused) = (Mutex::new(Vec::new()), AtomicU64::new(0));
        in_threads(|thread| {
            let mut popped = Vec::new();
            for item in (0..EACH).map(|nth| thread * EACH + nth) {
                if let Err(StackFull(back)) = stacks.push(item) {
                    assert_eq!(back, item);
                    refused.fetch_add(1, Ordering::Relaxed);
                    popped.push(back);
                }
                if item % 3 != 0 {
                    popped.extend(stacks.pop());
                }
            }
            seen.lock().unwrap().append(&mut popped);
        });
        let mut seen = seen.into_inner().unwrap();
        seen.extend(stacks.drain());
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..THREADS * EACH), "{refused:?} were refused");
    }
}

#[test]
fn local_words_by_cpu_and_by_concurrency_lose_nothing() {
    const EACH: u64 = 200_000;
    for pcpu in ALLOCATORS.iter() {
        let by_cpu = PerCpu::<Local<u64>>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        let compact = PerCpu::<CompactLocal<i16>>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        in_threads(|_| {
            for _ in 0..EACH {
                by_cpu.inc();
                compact.sub(3);
            }
        });
        assert_eq!(by_cpu.sum(), THREADS * EACH);
        assert_eq!(compact.sum(), (-3 * (THREADS * EACH) as i64) as i16, "wraps");
    }
}
