//! What cgroups and objects take of memory.

use std::alloc::Layout;
use std::fs;

use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::{Gfp, Machine, Memcg, PerCpuAllocator};

/// Resident bytes of this process that are not backed by files.
fn resident() -> u64 {
    status("RssAnon:")
}

/// Bytes of page tables of this process.
fn page_tables() -> u64 {
    status("VmPTE:")
}

fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with(name)).expect("since Linux 4.5");
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}

/// 100 000 live cgroups on a machine of 256 CPUs, of which the process uses those that there are.
#[test]
fn a_hundred_thousand_cgroups_take_less_than_100_mb() {
    const CGROUPS: usize = 100_000;
    let machine = Machine::uniform(256).expect("a legal number of CPUs");
    let pcpu = PerCpuAllocator::builder().machine(machine).build().expect("address space");
    let parent = pcpu.root().create("parent").expect("a new name");
    let before = resident();
    let cgroups: Vec<Memcg> =
        (0..CGROUPS).map(|nth| parent.create(&format!("tenant-{nth}")).expect("room")).collect();
    let idle = resident() - before;
    for memcg in &cgroups {
        drop(memcg.charge(512).expect("room"));
    }
    let used = resident() - before;
    println!("{CGROUPS} cgroups: {} bytes each, {} once charged", idle / 100_000, used / 100_000);
    assert!(used <= 100_000_000, "{used} bytes");
    let full = 256 * 16 + 4 * 8;
    let tables = page_tables();
    let percpu = parent.stat().percpu;
    let tables = page_tables() - tables;
    println!("page tables to read that they have {percpu} bytes: {tables} bytes");
    assert!(tables <= 2_000_000, "{tables} bytes of page tables to read what was never written");
    assert_eq!((parent.current(), parent.stat().percpu), (CGROUPS as u64 * full, parent.current()));
    for memcg in &cgroups {
        memcg.remove().expect("nobody is there");
    }
    drop(cgroups);
    assert_eq!((parent.current(), parent.nr_dying_descendants()), (0, 0));
    let left = resident().saturating_sub(before);
    println!("{left} bytes left after all were removed");
}

/// Set in the process that [`a_hundred_thousand_objects_take_less_than_12_mb`] starts.
const CHILD: &str = "PERCPU_FOOTPRINT_CHILD";

/// 100 000 objects of 8 bytes on a machine of 256 CPUs, after the two that the process uses have
/// written all of them. Another process is measured, in which no other test runs.
#[test]
fn a_hundred_thousand_objects_take_less_than_12_mb() {
    const OBJECTS: usize = 100_000;
    if std::env::var_os(CHILD).is_none() {
        let this = std::env::current_exe().expect("a path of this test");
        let mut child = std::process::Command::new(this);
        child.args(["--exact", "a_hundred_thousand_objects_take_less_than_12_mb", "--nocapture"]);
        let output = child.env(CHILD, "1").output().expect("this test runs");
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("bytes each"), "{text}{errors}");
        return;
    }
    for gfp in [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT] {
        let machine = Machine::uniform(256).expect("a legal number of CPUs");
        let pcpu = PerCpuAllocator::builder().machine(machine).build().expect("address space");
        let tenant = pcpu.root().create("tenant").expect("a new name");
        let _in = tenant.enter();
        let taken = || resident() + page_tables();
        let before = taken();
        let area = |_| pcpu.alloc(Layout::new::<u64>(), gfp).expect("room");
        let areas: Vec<PcpuPtr> = (0..OBJECTS).map(area).collect();
        for cpu in &pcpu.machine().possible()[..2] {
            for area in &areas {
                let word = pcpu.per_cpu_ptr(*area, *cpu).expect("a possible CPU").cast::<u64>();
                // SAFETY: an aligned word of a live area, which no other thread uses.
                unsafe { word.write(1) };
            }
        }
        let used = taken() - before;
        println!("{OBJECTS} objects, {gfp:?}: {:.1} bytes each", used as f64 / OBJECTS as f64);
        assert!(used < 12_000_000, "{used} bytes");
    }
}
