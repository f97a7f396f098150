//! The allocator with real memory, and whether it keeps what it promises about content and
//! counters.

use std::alloc::Layout;
use std::collections::HashMap;
use std::error::Error;
use std::slice;

use percpu_memcg::allocator::{BalanceMode, PcpuPtr, Populate, Profile};
use percpu_memcg::machine::CpuId;
use percpu_memcg::placement::{GRANULE_SIZE, Place, Stats};
use percpu_memcg::{AllocError, Gfp, Machine, Memcg, PerCpuAllocator};

use crate::args::Options;
use crate::memory::{Pattern, Resident, is_zero};
use crate::output::Differences;
use crate::recording::Header;
use crate::subject::{Request, Subject, regions};

/// Copies that are looked at again before an area is freed although nobody wrote them.
const MAX_UNTOUCHED_LOOKED_AT: usize = 3;

/// Real memory on as many CPUs as wanted, and a tree of cgroups that pays for it.
pub struct Backed {
    allocator: PerCpuAllocator,
    /// Parents before their children.
    cgroups: Vec<Memcg>,
    /// CPUs whose copies are written.
    touched: Vec<CpuId>,
    /// Some of the others.
    untouched: Vec<CpuId>,
    live: HashMap<u64, Area>,
    resident: Resident,
}

/// A live area: it is in `Backed::live`, or on its way from or to there.
struct Area {
    ptr: PcpuPtr,
    /// Bytes asked for.
    size: usize,
}

impl Backed {
    pub fn new(
        header: &Header,
        profile: Profile,
        options: &Options,
    ) -> Result<Backed, Box<dyn Error>> {
        let machine = Machine::uniform(options.cpus.unwrap_or(header.nr_cpus as usize))?;
        let (touched, others) =
            machine.possible().split_at(options.touch.min(machine.nr_possible()));
        let step = others.len().div_ceil(MAX_UNTOUCHED_LOOKED_AT).max(1);
        let (touched, untouched) =
            (touched.to_vec(), others.iter().copied().step_by(step).collect());
        let builder = PerCpuAllocator::builder();
        let builder = match options.cache {
            Some(bytes) => builder.cache_size(bytes),
            None => builder,
        };
        let allocator = builder
            .machine(machine)
            .profile(profile)
            .unit_size(header.unit_size)
            .regions(regions(header))
            .populate(Populate::Lazy)
            // Balance work changes where later areas go, so it has to run when the recording says.
            .balance(BalanceMode::Manual)
            .build()?;
        let cgroups = create_cgroups(&allocator.root(), options.cgroups)?;
        let (live, resident) = (HashMap::new(), Resident::default());
        Ok(Backed { allocator, cgroups, touched, untouched, live, resident })
    }

    /// Makes the request of the allocator; `None` when no legal call can express it.
    fn try_alloc(&self, request: &Request) -> Option<Result<Area, AllocError>> {
        let &Request { id, size, align, flags } = request;
        // Recordings have alignments of 0 to 3, which count as 4.
        let align = usize::try_from(align).ok()?.max(GRANULE_SIZE);
        let layout = Layout::from_size_align(usize::try_from(size).ok()?, align).ok()?;
        let mut gfp = if flags.atomic { Gfp::NOWAIT } else { Gfp::KERNEL };
        let _charged = flags.account.then(|| {
            gfp |= Gfp::ACCOUNT;
            self.cgroups[(id % self.cgroups.len() as u64) as usize].enter()
        });
        let ptr = if flags.reserved {
            self.allocator.alloc_reserved(layout, gfp)
        } else {
            self.allocator.alloc(layout, gfp)
        };
        Some(ptr.map(|ptr| Area { ptr, size: layout.size() }))
    }

    /// The copy of a possible CPU.
    fn copy(&self, area: &Area, cpu: CpuId) -> &[u8] {
        let copy = self.allocator.per_cpu_ptr(area.ptr, cpu).expect("a possible CPU");
        // SAFETY: the area is live and its copies have `size` bytes, which the allocator zeroed;
        // only `copy_mut` writes them, and not while `self` is borrowed.
        unsafe { slice::from_raw_parts(copy.as_ptr(), area.size) }
    }

    fn copy_mut(&mut self, area: &Area, cpu: CpuId) -> &mut [u8] {
        let copy = self.allocator.per_cpu_ptr(area.ptr, cpu).expect("a possible CPU");
        // SAFETY: as in `copy`; areas do not overlap, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(copy.as_ptr(), area.size) }
    }

    /// A new area: it has to read as zero everywhere. Then it gets its own content.
    fn inspect_and_fill(&mut self, id: u64, area: &Area, differences: &mut Differences) {
        for &cpu in self.allocator.machine().possible() {
            if !is_zero(self.copy(area, cpu)) {
                differences.add(format_args!("alloc {id}: not zero on CPU {cpu}"));
            }
        }
        for index in 0..self.touched.len() {
            let cpu = self.touched[index];
            Pattern::of(id, cpu).fill(self.copy_mut(area, cpu));
        }
    }

    /// An area that ends: it has to hold what was written, and nothing else.
    fn inspect_again(&self, id: u64, area: &Area, differences: &mut Differences) {
        for &cpu in &self.touched {
            if !Pattern::of(id, cpu).fills(self.copy(area, cpu)) {
                differences.add(format_args!("free {id}: overwritten on CPU {cpu}"));
            }
        }
        for &cpu in &self.untouched {
            if !is_zero(self.copy(area, cpu)) {
                differences.add(format_args!("free {id}: no longer zero on CPU {cpu}"));
            }
        }
    }

    /// Removes all cgroups. Nothing may be charged to anybody then.
    fn remove_cgroups(&mut self, differences: &mut Differences) {
        let mut check = |what: &str, value: u64| {
            if value != 0 {
                differences.add(format_args!("{what} is {value}, not 0"));
            }
        };
        // Children first: their own statistics are charged to their parent.
        while let Some(cgroup) = self.cgroups.pop() {
            let path = cgroup.path();
            check(&format!("usage of {path}"), cgroup.current());
            check(&format!("percpu of {path}"), cgroup.stat().percpu);
            if let Err(error) = cgroup.remove() {
                check(&format!("removing {path}: {error}; errno"), error.errno() as u64);
            }
        }
        let root = self.allocator.root();
        check("usage of the root", root.current());
        check("percpu of the root", root.stat().percpu);
        check("count of cgroups", root.nr_descendants() as u64);
        check("count of dying cgroups", root.nr_dying_descendants() as u64);
        let stats = self.allocator.stats();
        check("count of live areas", stats.nr_cur_alloc);
        check("live bytes", stats.live_bytes);
    }
}

/// Creates `count` cgroups, each of which has two children as far as they go.
fn create_cgroups(root: &Memcg, count: usize) -> Result<Vec<Memcg>, Box<dyn Error>> {
    let mut cgroups: Vec<Memcg> = Vec::new();
    for index in 0..count {
        let parent = if index < 2 { root } else { &cgroups[index / 2 - 1] };
        cgroups.push(parent.create(&format!("tenant-{index}"))?);
    }
    Ok(cgroups)
}

impl Subject for Backed {
    fn alloc(&mut self, request: &Request, differences: &mut Differences) -> Option<Place> {
        let area = match self.try_alloc(request)? {
            Ok(area) => area,
            Err(AllocError::Invalid(_) | AllocError::NoRoom { .. }) => return None,
            Err(error) => {
                differences.add(format_args!("alloc {}: {error}", request.id));
                return None;
            }
        };
        self.inspect_and_fill(request.id, &area, differences);
        let place = self.allocator.place_of(area.ptr);
        self.live.insert(request.id, area);
        self.resident.sample_sometimes();
        place.map_err(|error| differences.add(format_args!("alloc {}: {error}", request.id))).ok()
    }

    fn free(&mut self, id: u64, differences: &mut Differences) {
        let Some(area) = self.live.remove(&id) else { return };
        self.inspect_again(id, &area, differences);
        // SAFETY: the area is live, was allocated with `alloc`, and no reference to its copies is
        // left.
        if let Err(error) = unsafe { self.allocator.free(area.ptr) } {
            differences.add(format_args!("free {id}: {error}"));
        }
    }

    fn balance(&mut self) {
        self.allocator.balance();
    }

    fn stats(&self) -> Stats {
        self.allocator.stats()
    }

    fn finish(&mut self, differences: &mut Differences) -> String {
        differences.at_the_end();
        self.resident.sample();
        let (nr_areas, nr_cgroups) = (self.allocator.stats().nr_alloc, self.cgroups.len());
        let peak_charged = self.allocator.root().peak();

        let mut left: Vec<u64> = self.live.keys().copied().collect();
        left.sort_unstable();
        for id in left {
            self.free(id, differences);
        }
        self.balance();
        self.remove_cgroups(differences);
        if let Err(broken) = self.allocator.verify() {
            differences.add(broken);
        }

        let mib = |kib: u64| kib.div_ceil(1024);
        format!(
            "checked: {nr_areas} areas on {} CPUs, {} of them written\n\
             charged: peak {peak_charged} bytes to {nr_cgroups} cgroups\n\
             resident: peak {} MiB (RssAnon)\n\
             page tables: peak {} MiB (VmPTE)\n",
            self.allocator.machine().nr_possible(),
            self.touched.len(),
            mib(self.resident.peak_private),
            mib(self.resident.peak_page_tables),
        )
    }
}
