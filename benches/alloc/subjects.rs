//! What is measured: this crate, and what stands beside it.

use std::alloc::Layout;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::cgroup::EnterGuard;
use percpu_memcg::{Gfp, Machine, Memcg, PerCpuAllocator};

/// Something that allocates objects.
pub(crate) trait Subject: Sync {
    type Object: Send;

    fn alloc(&self) -> Self::Object;

    fn free(&self, object: Self::Object);

    /// Writes a word of the object's copy of a CPU.
    fn write(&self, object: &mut Self::Object, cpu: usize);

    /// Called by each thread before it allocates.
    fn enter(&self) -> Option<EnterGuard> {
        None
    }
}

/// One way to use this crate.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    gfp: Gfp,
    is_cached: bool,
}

pub(crate) const PLAIN: Way = Way { name: "plain", gfp: Gfp::KERNEL, is_cached: true };
pub(crate) const ACCOUNTED: Way =
    Way { name: "accounted", gfp: Gfp::KERNEL_ACCOUNT, is_cached: true };
pub(crate) const WAYS: [Way; 4] = [
    PLAIN,
    ACCOUNTED,
    Way { name: "plain_uncached", is_cached: false, ..PLAIN },
    Way { name: "accounted_uncached", is_cached: false, ..ACCOUNTED },
];

/// This crate. The areas that are live in the end are dropped with the allocator.
pub(crate) struct Ours {
    pub(crate) pcpu: PerCpuAllocator,
    tenant: Memcg,
    pub(crate) layout: Layout,
    pub(crate) gfp: Gfp,
}

impl Ours {
    /// An allocator in which nothing lives.
    pub(crate) fn empty(cpus: usize, size: usize, way: Way) -> Self {
        let machine = Machine::uniform(cpus).expect("a legal number of CPUs");
        let builder = PerCpuAllocator::builder().machine(machine);
        let builder = if way.is_cached { builder } else { builder.cache_size(0) };
        let pcpu = builder.build().expect("address space");
        let tenant = pcpu.root().create("tenant").expect("a new name");
        let layout = Layout::from_size_align(size, 8).expect("a legal layout");
        Ours { pcpu, tenant, layout, gfp: way.gfp }
    }

    /// As in any service, other areas live as well: a chunk that is emptied by every free costs
    /// more. The first chunk is full, so that areas of both kinds lie at the same places of chunks
    /// of their own, and what is compared is accounting.
    pub(crate) fn new(cpus: usize, size: usize, way: Way) -> Self {
        let ours = Ours::empty(cpus, size, way);
        let _in = ours.tenant.enter();
        let chunk_of_a_new_area = |gfp| {
            let area = ours.pcpu.alloc(Layout::new::<u64>(), gfp).expect("room");
            ours.pcpu.place_of(area).expect("a live area").chunk
        };
        let first = chunk_of_a_new_area(Gfp::KERNEL);
        while chunk_of_a_new_area(Gfp::KERNEL) == first {}
        assert_ne!(chunk_of_a_new_area(Gfp::KERNEL_ACCOUNT), first);
        ours
    }

    /// The first word of each copy of an area.
    pub(crate) fn words(&self, area: PcpuPtr) -> impl Iterator<Item = NonNull<u64>> {
        let copy = move |cpu| self.pcpu.per_cpu_ptr(area, cpu).expect("a possible CPU").cast();
        self.pcpu.machine().possible().iter().map(move |cpu| copy(*cpu))
    }
}

impl Subject for Ours {
    type Object = PcpuPtr;

    fn alloc(&self) -> PcpuPtr {
        self.pcpu.alloc(self.layout, self.gfp).expect("room")
    }

    fn free(&self, area: PcpuPtr) {
        // SAFETY: nobody uses the area.
        unsafe { self.pcpu.free(area) }.expect("a live area");
    }

    fn write(&self, area: &mut PcpuPtr, cpu: usize) {
        let cpu = self.pcpu.machine().possible()[cpu];
        let copy = self.pcpu.per_cpu_ptr(*area, cpu).expect("a possible CPU");
        // SAFETY: an aligned word of a live area, which no other thread uses.
        unsafe { copy.cast::<u64>().write(1) };
    }

    fn enter(&self) -> Option<EnterGuard> {
        Some(self.tenant.enter())
    }
}

/// An element of its own cache lines for each CPU.
pub(crate) struct PaddedArray<const SIZE: usize> {
    pub(crate) cpus: usize,
}

impl<const SIZE: usize> Subject for PaddedArray<SIZE> {
    type Object = Box<[CachePadded<[u8; SIZE]>]>;

    fn alloc(&self) -> Self::Object {
        std::iter::repeat_with(|| CachePadded::new([0; SIZE])).take(self.cpus).collect()
    }

    fn free(&self, array: Self::Object) {
        drop(array);
    }

    fn write(&self, array: &mut Self::Object, cpu: usize) {
        array[cpu][..8].copy_from_slice(&1_u64.to_ne_bytes());
    }
}

/// What the process's heap takes for one object, which all CPUs would share.
pub(crate) struct Malloc;

impl Subject for Malloc {
    type Object = Box<AtomicU64>;

    fn alloc(&self) -> Self::Object {
        black_box(Box::new(AtomicU64::new(0)))
    }

    fn free(&self, object: Self::Object) {
        drop(object);
    }

    fn write(&self, object: &mut Self::Object, _: usize) {
        *object.get_mut() = 1;
    }
}

/// Areas of ours, plain and of 8 bytes, that a list hands out again.
pub(crate) struct FreeList {
    ours: Ours,
    free: Mutex<Vec<PcpuPtr>>,
    clears: bool,
    /// From one copy of an area to the next one.
    stride: usize,
}

impl FreeList {
    pub(crate) fn new(cpus: usize, clears: bool) -> Self {
        let ours = Ours::new(cpus, 8, PLAIN);
        let area = ours.alloc();
        let mut words = ours.words(area).map(|word| word.addr().get());
        let (first, second) = (words.next(), words.next());
        let stride = second.expect("two CPUs") - first.expect("two CPUs");
        drop(words);
        FreeList { ours, free: Mutex::new(Vec::with_capacity(1 << 18)), clears, stride }
    }
}

impl Subject for FreeList {
    type Object = PcpuPtr;

    fn alloc(&self) -> PcpuPtr {
        let kept = self.free.lock().pop();
        let Some(area) = kept else { return self.ours.alloc() };
        if self.clears {
            for cpu in 0..self.ours.pcpu.machine().nr_possible() {
                // SAFETY: the copies of an area lie in one mapping, equally far apart.
                let word = unsafe { area.as_ptr().add(cpu * self.stride) };
                // SAFETY: an aligned word of a live area, which no other thread uses.
                unsafe { word.cast::<u64>().write(0) };
            }
        }
        area
    }

    fn free(&self, area: PcpuPtr) {
        self.free.lock().push(area);
    }

    fn write(&self, area: &mut PcpuPtr, cpu: usize) {
        self.ours.write(area, cpu);
    }
}
