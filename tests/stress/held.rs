//! What a thread holds, and who has to pay for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::cgroup::Accounted;
use percpu_memcg::{Charge, Memcg, PerCpu, PerCpuAllocator};

/// Something charged, and who paid at first: the path of a cgroup. When that is removed, its nearest
/// ancestor that lives pays.
pub(crate) struct Item {
    pub(crate) what: What,
    pub(crate) payer: String,
    /// Of a charge or an area. Of a collection, 1 while a step changes it.
    pub(crate) bytes: u64,
}

pub(crate) enum What {
    Charge(Charge),
    List(Accounted<Vec<u64>>),
    Map(Accounted<HashMap<u32, u64>>),
    Raw(Raw),
    Small(PerCpu<AtomicU64>, u64),
    Large(PerCpu<[u64; 300]>),
    /// A future between two polls, and what it holds.
    Future(Pin<Box<dyn Future<Output = ()> + Send>>, Arc<Mutex<Vec<Item>>>),
}

/// An area without a type.
pub(crate) struct Raw {
    pub(crate) ptr: PcpuPtr,
    pub(crate) size: usize,
    pub(crate) pcpu: PerCpuAllocator,
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the area.
        unsafe { self.pcpu.free(self.ptr) }.expect("a live area");
    }
}

impl Item {
    pub(crate) fn charge(charge: Charge, payer: &Memcg) -> Self {
        Item { bytes: charge.bytes(), payer: payer.path(), what: What::Charge(charge) }
    }

    /// Compares what is held with what is known about it.
    pub(crate) fn check(&self) {
        match &self.what {
            What::Charge(charge) => assert_eq!(charge.bytes(), self.bytes, "{charge:?}"),
            // Not if a callback has panicked while it was edited.
            What::List(list) if self.bytes == 0 => {
                assert_eq!(list.charge().bytes(), 8 * list.capacity() as u64);
            }
            What::Small(object, value) => {
                assert!(object.iter().all(|(_, word)| word.load(Relaxed) == *value));
            }
            What::Large(object) => {
                assert!(object.iter().all(|(_, words)| words.iter().all(|word| *word == 0)));
            }
            What::List(_) | What::Map(_) | What::Raw(_) | What::Future(..) => {}
        }
    }
}

/// Bytes that cgroups have to pay for what is held.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    /// By path.
    pub(crate) of_charges: BTreeMap<String, u64>,
    pub(crate) of_areas: BTreeMap<String, u64>,
}

impl Sums {
    /// Adds what an item costs. `live` has the paths of all cgroups.
    pub(crate) fn add(&mut self, item: &Item, live: &BTreeSet<String>) {
        item.check();
        let payer = live_payer(&item.payer, live);
        match &item.what {
            What::Charge(charge) => self.add_charge(charge, payer),
            What::List(list) => self.add_charge(list.charge(), payer),
            What::Map(map) => self.add_charge(map.charge(), payer),
            What::Raw(_) | What::Small(..) | What::Large(_) if item.bytes == 0 => {}
            What::Raw(_) | What::Small(..) | What::Large(_) => {
                *self.of_areas.entry(payer).or_default() += item.bytes;
            }
            What::Future(_, inside) => inside.lock().iter().for_each(|item| self.add(item, live)),
        }
    }

    fn add_charge(&mut self, charge: &Charge, payer: String) {
        assert_eq!(charge.cgroup(), payer, "who pays for {} bytes", charge.bytes());
        *self.of_charges.entry(payer).or_default() += charge.bytes();
    }

    pub(crate) fn join(&mut self, other: Sums) {
        let Sums { of_charges, of_areas } = other;
        for (path, bytes) in of_charges {
            *self.of_charges.entry(path).or_default() += bytes;
        }
        for (path, bytes) in of_areas {
            *self.of_areas.entry(path).or_default() += bytes;
        }
    }
}

/// The nearest ancestor that lives.
fn live_payer(path: &str, live: &BTreeSet<String>) -> String {
    let mut path = path;
    while !live.contains(path) {
        path = match path.rsplit_once('/').expect("the root lives").0 {
            "" => "/",
            above => above,
        };
    }
    path.into()
}
