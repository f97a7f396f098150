//! No size makes the arithmetic overflow, with debug assertions or without.

use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

use percpu_memcg::Limit;
use percpu_memcg::cgroup::Footprint;

use crate::tenant;

/// Nothing between what any heap has, and what no heap has.
const COUNTS: [usize; 14] = [
    0,
    1,
    7,
    8,
    usize::MAX,
    usize::MAX - 1,
    usize::MAX / 2,
    usize::MAX / 2 + 1,
    usize::MAX / 7 * 7 + 1,
    usize::MAX / 8,
    usize::MAX / 16,
    usize::MAX / 24,
    1 << 60,
    1 << 59,
];

/// What the collection says itself is what its account says.
fn agrees<C: Footprint + Default + Debug>(fill: impl Fn(&mut C)) {
    let (pcpu, tenant) = tenant();
    for is_filled in [false, true] {
        for count in COUNTS {
            let collection = || {
                let mut new = C::default();
                if is_filled {
                    fill(&mut new);
                }
                new
            };
            let own = collection().try_reserve(count);
            let mut accounted = tenant.account(collection());
            let before = accounted.charge().bytes();
            let _estimate = accounted.footprint_with(count);
            match (&own, accounted.reserve(count)) {
                (Ok(()), Ok(())) => assert_eq!(accounted.charge().bytes(), accounted.footprint()),
                (Err(_), Err(error)) => {
                    assert!(!error.is_limit(), "{error}");
                    assert_eq!(accounted.charge().bytes(), before);
                }
                (own, ours) => panic!("{count}: {own:?}, but {ours:?}"),
            }
            assert_eq!(tenant.current(), accounted.charge().bytes());
        }
    }
    assert!(pcpu.root().peak() < 1 << 20);
    // Behind a limit it is refused, whatever it is, or needs no memory.
    tenant.set_max(Limit::bytes(0)).unwrap();
    for count in COUNTS {
        let mut accounted = tenant.account(C::default());
        if let Err(error) = accounted.reserve(count) {
            assert!(error.is_limit() || C::default().try_reserve(count).is_err(), "{error}");
        }
        assert_eq!(accounted.charge().bytes(), 0);
    }
}

fn maps<K: Eq + Hash + Default + Debug, V: Default + Debug>() {
    agrees::<HashMap<K, V>>(|map| drop(map.insert(K::default(), V::default())));
    agrees::<HashSet<K>>(|set| _ = set.insert(K::default()));
}

#[test]
fn arrays_of_every_size_of_element() {
    agrees::<Vec<()>>(|vec| vec.push(()));
    agrees::<Vec<u8>>(|vec| vec.push(1));
    agrees::<Vec<[u64; 3]>>(|vec| vec.push([1; 3]));
    agrees::<Vec<[u8; 5000]>>(|vec| vec.push([1; 5000]));
    agrees::<VecDeque<()>>(|deque| deque.push_back(()));
    agrees::<VecDeque<u128>>(|deque| deque.push_back(1));
    agrees::<BinaryHeap<u32>>(|heap| heap.push(1));
    agrees::<BinaryHeap<()>>(|heap| heap.push(()));
    agrees::<String>(|string| string.push('x'));
}

#[test]
fn tables_of_every_size_of_element() {
    maps::<u64, u64>();
    maps::<u8, ()>();
    maps::<(), ()>();
    maps::<u128, [u64; 32]>();
}
