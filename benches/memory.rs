//! What 100 000 objects take of memory.
//!
//! Each case is a process of its own, so that none is measured with what another one left. The
//! machine has 2, 64 or 256 CPUs, of which two write their copies of every object. Two figures of
//! the kernel are read (`/proc/self/status`), before and after:
//!
//! | figure | what |
//! |---|---|
//! | `RssAnon` | resident memory: copies that were written, and the allocator's own records |
//! | `VmPTE` | page tables |
//!
//! The pointers that the program holds are not counted: 8 bytes each, and 16 for a padded array.
//! `unwritten` is what objects take before any copy is written: the allocator's records.
//!
//! The figures are printed, and written for `benches/plot.py` to `tmp/memory.csv` in the target
//! folder: bytes per object.

use std::alloc::Layout;
use std::env;
use std::fs;
use std::process::Command;

use crossbeam_utils::CachePadded;
use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

const OBJECTS: usize = 100_000;
/// CPUs that write.
const WRITERS: usize = 2;
const CASE: &str = "MEMORY_CASE";
const OUT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/memory.csv");
const COLUMNS: &str =
    "subject,size,cpus,unwritten_rss,unwritten_page_tables,written_rss,written_page_tables";

fn main() {
    if let Ok(case) = env::var(CASE) {
        return run(&case);
    }
    let mut csv = format!("{COLUMNS}\n");
    println!("{COLUMNS}");
    for size in [8, 200] {
        for cpus in [2, 64, 256] {
            let mut subjects = vec!["plain", "accounted"];
            // Padded arrays of 200 bytes for 256 CPUs take 6.6 GB.
            if cpus == 2 || size == 8 && cpus == 256 {
                subjects.push("padded_array");
            }
            for subject in subjects {
                let case = format!("{subject},{size},{cpus}");
                let mut command = Command::new(env::current_exe().expect("a path"));
                let output = command.env(CASE, &case).output().expect("this program runs");
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(
                    output.status.success(),
                    "{case}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                print!("{text}");
                csv += &text;
            }
        }
    }
    fs::write(OUT, csv).expect("a writable target folder");
}

/// Measures one case, and prints it.
fn run(case: &str) {
    let [subject, size, cpus] = case.split(',').collect::<Vec<_>>()[..] else {
        panic!("no case: {case}");
    };
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let (size, cpus) = (number(size), number(cpus));
    let [unwritten, written] = match (subject, size) {
        ("plain", _) => ours(size, cpus, Gfp::KERNEL),
        ("accounted", _) => ours(size, cpus, Gfp::KERNEL_ACCOUNT),
        (_, 8) => padded_arrays::<8>(cpus),
        _ => padded_arrays::<200>(cpus),
    };
    let each = |taken: Taken| {
        let each = |bytes| bytes as f64 / OBJECTS as f64;
        format!("{:.2},{:.2}", each(taken.resident), each(taken.page_tables))
    };
    println!("{case},{},{}", each(unwritten), each(written));
}

/// Bytes that this process takes.
#[derive(Clone, Copy)]
struct Taken {
    resident: i64,
    page_tables: i64,
}

impl Taken {
    fn now() -> Taken {
        let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
            kib.unwrap_or_else(|| panic!("no {name} in /proc/self/status")) << 10
        };
        Taken { resident: field("RssAnon:"), page_tables: field("VmPTE:") }
    }

    fn since(self, before: Taken) -> Taken {
        Taken {
            resident: self.resident - before.resident,
            page_tables: self.page_tables - before.page_tables,
        }
    }
}

/// A vector whose memory is there already.
fn touched<T: Clone>(value: T) -> Vec<T> {
    let mut vector = vec![value; OBJECTS];
    vector.clear();
    vector
}

fn ours(size: usize, cpus: usize, gfp: Gfp) -> [Taken; 2] {
    let machine = Machine::uniform(cpus).expect("a legal number of CPUs");
    let pcpu = PerCpuAllocator::builder().machine(machine).build().expect("address space");
    let tenant = pcpu.root().create("tenant").expect("a new name");
    let _in = tenant.enter();
    let layout = Layout::from_size_align(size, 8).expect("a legal layout");
    let mut areas: Vec<PcpuPtr> = touched(PcpuPtr::from_ptr(std::ptr::NonNull::dangling()));
    let before = Taken::now();
    areas.extend((0..OBJECTS).map(|_| pcpu.alloc(layout, gfp).expect("room")));
    let unwritten = Taken::now().since(before);
    for area in &areas {
        for cpu in &pcpu.machine().possible()[..WRITERS] {
            let copy = pcpu.per_cpu_ptr(*area, *cpu).expect("a possible CPU");
            // SAFETY: a copy of a live area has so many bytes, and no other thread uses it.
            unsafe { copy.write_bytes(1, size) };
        }
    }
    [unwritten, Taken::now().since(before)]
}

fn padded_arrays<const SIZE: usize>(cpus: usize) -> [Taken; 2] {
    type Array<const SIZE: usize> = Box<[CachePadded<[u8; SIZE]>]>;
    let mut arrays: Vec<Array<SIZE>> = touched(Box::default());
    let before = Taken::now();
    for _ in 0..OBJECTS {
        let zero = || CachePadded::new([0; SIZE]);
        arrays.push(std::iter::repeat_with(zero).take(cpus).collect());
    }
    let unwritten = Taken::now().since(before);
    for array in &mut arrays {
        array[..WRITERS].iter_mut().for_each(|copy| copy.fill(1));
    }
    [unwritten, Taken::now().since(before)]
}
