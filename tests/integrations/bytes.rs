//! Bytes with a charge inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bytes::{Buf, Bytes, BytesMut};
use percpu_memcg::integrations::bytes::charged;
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};

fn tenant() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(10_000)).unwrap();
    (pcpu, tenant)
}

#[test]
fn the_last_of_clones_and_slices_uncharges() {
    let (_pcpu, tenant) = tenant();
    let mut body = charged(b"0123456789".to_vec(), tenant.charge(10).unwrap());
    let (clone, tail) = (body.clone(), body.split_off(7));
    body.advance(2);
    assert_eq!(
        (&body[..], &tail[..], &clone[..]),
        (&b"23456"[..], &b"789"[..], &b"0123456789"[..])
    );
    drop((body, clone));
    assert_eq!(tenant.current(), 10);
    drop(tail);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_copy_is_not_charged() {
    let (_pcpu, tenant) = tenant();
    let body = charged(vec![7; 1000], tenant.charge(1000).unwrap());
    let copy = BytesMut::from(body.clone());
    let vector = Vec::from(body);
    assert_eq!((copy.len(), vector.len(), tenant.current()), (1000, 1000, 0));
}

/// Any owner: bytes, a boxed slice, something static.
#[test]
fn what_is_wrapped_may_be_anything_that_has_bytes() {
    let (_pcpu, tenant) = tenant();
    let charge = || tenant.charge(4).unwrap();
    let wrapped: [Bytes; 3] = [
        charged(charged(vec![1, 2, 3, 4], charge()), charge()),
        charged(vec![1, 2, 3, 4].into_boxed_slice(), charge()),
        charged([1, 2, 3, 4], charge()),
    ];
    assert!(wrapped.iter().all(|bytes| bytes[..] == [1, 2, 3, 4]));
    assert_eq!(tenant.current(), 16);
    drop(wrapped);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn no_bytes_are_charged_as_long_as_they_are_held() {
    let (_pcpu, tenant) = tenant();
    let reserved = charged(Vec::new(), tenant.charge(500).unwrap());
    assert_eq!((reserved.len(), tenant.current()), (0, 500));
    drop(reserved);
    assert_eq!(tenant.current(), 0);
}

/// The memory is uncharged after it was freed, and not before.
#[test]
fn the_data_is_dropped_before_its_charge() {
    struct Data(Memcg, Arc<AtomicU64>);
    impl AsRef<[u8]> for Data {
        fn as_ref(&self) -> &[u8] {
            b"data"
        }
    }
    impl Drop for Data {
        fn drop(&mut self) {
            self.1.store(self.0.current(), Ordering::Relaxed);
        }
    }
    let (_pcpu, tenant) = tenant();
    let charged_at_drop = Arc::new(AtomicU64::new(0));
    let data = Data(tenant.clone(), Arc::clone(&charged_at_drop));
    drop(charged(data, tenant.charge(4).unwrap()));
    assert_eq!((charged_at_drop.load(Ordering::Relaxed), tenant.current()), (4, 0));
}

#[test]
fn slices_go_to_threads_and_outlive_their_tenant() {
    let (pcpu, tenant) = tenant();
    let body = charged(vec![1; 4000], tenant.charge(4000).unwrap());
    tenant.remove().unwrap();
    thread::scope(|scope| {
        for part in 0..4 {
            let slice = body.slice(part * 1000..(part + 1) * 1000);
            scope.spawn(move || {
                assert_eq!(slice.iter().map(|&byte| byte as u64).sum::<u64>(), 1000);
            });
        }
        drop(body);
    });
    assert_eq!((tenant.current(), pcpu.root().stat().charged), (0, 0));
}
