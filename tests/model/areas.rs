//! Operations on areas, in the system and in the model.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use percpu_memcg::allocator::{BalanceMode, PcpuPtr};
use percpu_memcg::error::FreeError;
use percpu_memcg::machine::CpuId;
use percpu_memcg::placement::InvalidRequest;
use percpu_memcg::{AllocError, Gfp, PerCpu};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

use crate::memory;
use crate::op::{Bad, Request};
use crate::shadow_tree::{CgroupId, Refusal};
use crate::world::{Area, Holder, World, pick, same_refusal};

/// What the model says of a request before it is made.
#[derive(Debug)]
enum Verdict {
    Invalid,
    /// The thread is in a scope of another tree alone.
    OtherTree,
    Refused(Refusal),
    /// Granted to whoever pays; memory may be missing yet.
    Granted(Option<CgroupId>),
}

impl World {
    fn judge(&mut self, request: &Request) -> Verdict {
        let Request { size, align, gfp, .. } = *request;
        if size == 0 || size > 32_768 || align > 4096 {
            return Verdict::Invalid;
        }
        if gfp.contains(Gfp::ACCOUNT) && self.tree.is_elsewhere() {
            return Verdict::OtherTree;
        }
        let payer = self.tree.payer().filter(|_| gfp.contains(Gfp::ACCOUNT));
        let Some(payer) = payer else { return Verdict::Granted(None) };
        let removed = self.tree.cgroups[self.tree.entered()].removed;
        self.note_if(removed, "charged for a removed cgroup");
        let forced = gfp.intersects(Gfp::HIGH | Gfp::NOFAIL);
        match self.may_charge(payer, self.tree.full_size(size), forced) {
            Ok(()) => Verdict::Granted(Some(payer)),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    pub(crate) fn alloc(&mut self, request: Request) -> TestCaseResult {
        let Request { size, align, gfp, reserved } = request;
        let layout = Layout::from_size_align(size, align).expect("far from overflow");
        let verdict = self.judge(&request);
        let before = self.pcpu.machine().faults().operations();
        let result = match reserved {
            false => self.pcpu.alloc(layout, gfp),
            true => self.pcpu.alloc_reserved(layout, gfp),
        };
        match result {
            Ok(ptr) => self.granted(&request, &verdict, ptr, Holder::Raw, BTreeMap::new())?,
            Err(error) => self.failed(&request, &verdict, &error)?,
        }
        self.did_not_block(&request, &verdict, before)
    }

    pub(crate) fn alloc_typed(&mut self, gfp: Gfp, seed: Option<u64>) -> TestCaseResult {
        let request = Request { size: 8, align: 8, gfp, reserved: false };
        let verdict = self.judge(&request);
        let before = self.pcpu.machine().faults().operations();
        let value = |seed: u64, cpu: CpuId| seed.wrapping_add(u64::from(cpu.get()));
        let result = match seed {
            None => PerCpu::zeroed_in(&self.pcpu, gfp),
            Some(seed) => PerCpu::new_in(&self.pcpu, gfp, |cpu| AtomicU64::new(value(seed, cpu))),
        };
        match result {
            Ok(object) => {
                let cpus = self.pcpu.machine().possible();
                prop_assert!(object.iter().map(|(cpu, _)| cpu).eq(cpus.iter().copied()));
                let first = object.get(cpus[0]).map(|first| std::ptr::from_ref(first).cast_mut());
                let first = first.expect("a possible CPU").cast::<u8>().wrapping_sub(self.lead);
                let ptr = PcpuPtr::from_ptr(NonNull::new(first).expect("an address"));
                let written = seed.map_or(BTreeMap::new(), |seed| {
                    cpus.iter().map(|&cpu| value(seed, cpu)).enumerate().collect()
                });
                self.granted(&request, &verdict, ptr, Holder::Typed(object), written)?;
            }
            Err(error) => self.failed(&request, &verdict, &error)?,
        }
        self.did_not_block(&request, &verdict, before)
    }

    fn granted(
        &mut self,
        request: &Request,
        verdict: &Verdict,
        ptr: PcpuPtr,
        holder: Holder,
        written: BTreeMap<usize, u64>,
    ) -> TestCaseResult {
        let Verdict::Granted(payer) = *verdict else {
            return Err(TestCaseError::fail(format!("served in spite of {verdict:?}")));
        };
        let place = self
            .pcpu
            .place_of(ptr)
            .map_err(|error| TestCaseError::fail(format!("a new area cannot be found: {error}")))?;
        prop_assert_eq!(place.size, request.size.next_multiple_of(4));
        self.space.take(&place, request.align, payer.is_some(), request.reserved)?;
        for &cpu in self.pcpu.machine().possible() {
            let address = memory::address(&self.pcpu, ptr, cpu).addr();
            prop_assert_eq!(address % request.align, 0, "alignment on CPU {}", cpu);
        }
        let kept = payer.filter(|_| self.space.keeps_owners(&place));
        let charge = kept.map(|payer| self.tree.hold(payer, self.tree.full_size(request.size)));
        self.note_if(charge.is_some(), "charged area");
        self.note_if(payer.is_some() && kept.is_none(), "accounted area that nobody pays for");
        self.note_if(request.align > 128, "widely aligned area");
        let reused = self.freed.contains(&ptr);
        self.note_if(reused, "reused area");
        let area = Area { holder, ptr, place, charge, written };
        memory::verify(&self.pcpu, &area, self.areas.len())?;
        self.areas.push(area);
        Ok(())
    }

    fn failed(
        &mut self,
        request: &Request,
        verdict: &Verdict,
        error: &AllocError,
    ) -> TestCaseResult {
        let operations = self.pcpu.machine().faults().operations();
        match (error, verdict) {
            (AllocError::Invalid(invalid), Verdict::Invalid) => {
                let true_reason = match *invalid {
                    InvalidRequest::ZeroSize => request.size == 0,
                    InvalidRequest::TooLarge { size } => {
                        size == request.size as u64 && request.size > 32_768
                    }
                    InvalidRequest::BadAlign { align } => {
                        align == request.align as u64 && request.align > 4096
                    }
                    _ => false,
                };
                prop_assert!(true_reason, "{error}");
                self.note("illegal request");
            }
            (AllocError::OtherTree, Verdict::OtherTree) => {
                self.note("a scope of another tree alone");
            }
            (AllocError::Limit(error), Verdict::Refused(refusal)) => same_refusal(error, refusal)?,
            (AllocError::NoRoom { size }, Verdict::Granted(_)) => {
                let from_reserved = request.reserved && self.space.has_reserved_region();
                prop_assert!(from_reserved || !request.gfp.may_block(), "{error}");
                prop_assert_eq!(*size, request.size.next_multiple_of(4));
                self.note(if from_reserved { "reserved region full" } else { "would block" });
            }
            (AllocError::Memory(error), Verdict::Granted(_)) => {
                self.faults.explain(error, operations)?;
                self.note("no memory");
            }
            _ => return Err(TestCaseError::fail(format!("{error}; the model says {verdict:?}"))),
        }
        Ok(())
    }

    /// Requests that may not block, and those that fail early, leave mappings alone.
    fn did_not_block(&self, request: &Request, verdict: &Verdict, before: u64) -> TestCaseResult {
        let may_map = request.gfp.may_block() && matches!(verdict, Verdict::Granted(_));
        let operations = self.pcpu.machine().faults().operations() - before;
        prop_assert!(may_map || operations == 0, "{operations} mapping operations");
        if may_map { self.left_no_work() } else { Ok(()) }
    }

    /// After an operation that may run balance work inline.
    fn left_no_work(&self) -> TestCaseResult {
        // What a cache serves leaves it to others.
        let is_inline = self.balance == BalanceMode::Inline && !self.is_cached;
        let left_over = is_inline && self.pcpu.is_balance_pending();
        prop_assert!(!left_over, "balance work was left to others");
        Ok(())
    }

    pub(crate) fn free(&mut self, index: usize) -> TestCaseResult {
        memory::verify(&self.pcpu, &self.areas[index], index)?;
        let Area { holder, ptr, place, charge, .. } = self.areas.swap_remove(index);
        match holder {
            Holder::Typed(object) => drop(object),
            Holder::Raw => {
                // SAFETY: a live area that only the model uses, and that is no object's.
                let freed = unsafe { self.pcpu.free(ptr) };
                prop_assert_eq!(freed, Ok(()));
            }
        }
        self.space.give_back(&place);
        if let Some(charge) = charge {
            self.tree.release(charge);
        }
        self.freed.push(ptr);
        self.left_no_work()
    }

    pub(crate) fn free_bad(&mut self, index: Index, bad: Bad) -> TestCaseResult {
        let byte = 0u8;
        let any = pick(index, self.areas.len()).map(|index| &self.areas[index]);
        let inside = |area: &Area, bytes: usize| {
            let address = area.ptr.as_ptr().as_ptr().wrapping_add(bytes);
            PcpuPtr::from_ptr(NonNull::new(address).expect("an address"))
        };
        let cpus = self.pcpu.machine().possible();
        let ptr = match bad {
            Bad::Interior(at) => any
                .filter(|area| area.place.size > 4)
                .map(|area| inside(area, 4 * (1 + at.index(area.place.size / 4 - 1)))),
            Bad::Unaligned => any.map(|area| inside(area, 1)),
            Bad::OtherCopy(at) => any.filter(|_| at.get(cpus).get() > 0).and_then(|area| {
                self.pcpu.per_cpu_ptr(area.ptr, *at.get(cpus)).map(PcpuPtr::from_ptr)
            }),
            Bad::Freed(at) => pick(at, self.freed.len())
                .map(|at| self.freed[at])
                .filter(|freed| self.areas.iter().all(|area| area.ptr != *freed)),
            Bad::OnTheStack => Some(PcpuPtr::from_ptr(NonNull::from(&byte))),
            Bad::Dangling => Some(PcpuPtr::from_ptr(NonNull::dangling())),
            Bad::OtherAllocator => {
                let object = self.stranger.2.get(CpuId::new(0)).expect("its only CPU");
                Some(PcpuPtr::from_ptr(NonNull::from(object).cast()))
            }
        };
        let Some(ptr) = ptr else { return Ok(()) };
        // SAFETY: names no live area.
        let freed = unsafe { self.pcpu.free(ptr) };
        let address = ptr.as_ptr().addr().get();
        let (foreign, not_live) = (FreeError::Foreign { address }, FreeError::NotLive { address });
        let expected = match bad {
            Bad::Interior(_) | Bad::Unaligned | Bad::OtherCopy(_) => freed == Err(not_live),
            Bad::Freed(_) => freed == Err(not_live) || freed == Err(foreign),
            Bad::OnTheStack | Bad::Dangling | Bad::OtherAllocator => freed == Err(foreign),
        };
        prop_assert!(expected, "free: {freed:?}");
        let place = self.pcpu.place_of(ptr);
        prop_assert!(place.is_err() && place.err() == freed.err(), "place_of: {place:?}");
        self.note("bad pointer");
        Ok(())
    }

    pub(crate) fn write(&mut self, area: Index, cpu: Option<Index>, seed: u64) -> TestCaseResult {
        let Some(area) = pick(area, self.areas.len()) else { return Ok(()) };
        let nr_possible = self.pcpu.machine().nr_possible();
        let positions = match cpu {
            Some(cpu) => cpu.index(nr_possible)..cpu.index(nr_possible) + 1,
            None => 0..nr_possible.min(8),
        };
        for position in positions {
            memory::write(&self.pcpu, &mut self.areas[area], position, seed);
        }
        Ok(())
    }

    pub(crate) fn check_area(&mut self, area: Index) -> TestCaseResult {
        let Some(area) = pick(area, self.areas.len()) else { return Ok(()) };
        let area = &self.areas[area];
        prop_assert_eq!(self.pcpu.place_of(area.ptr), Ok(area.place));
        let machine = self.pcpu.machine();
        for id in 0..machine.cpu_id_limit() as u32 + 1 {
            let copy = self.pcpu.per_cpu_ptr(area.ptr, CpuId::new(id));
            let possible = machine.possible().contains(&CpuId::new(id));
            prop_assert_eq!(copy.is_some(), possible, "copy of CPU {}", id);
        }
        memory::verify(&self.pcpu, area, 0)
    }
}
