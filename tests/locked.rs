//! A process that locks its memory. One test, as all of the process is locked.

use std::fs;
use std::io;

use percpu_memcg::allocator::BalanceMode;
use percpu_memcg::{Gfp, Local, Machine, PerCpu, PerCpuAllocator};

/// Resident bytes of this process that are not backed by files.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("since Linux 4.5");
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}

#[test]
fn locked_memory_is_what_was_touched() {
    // SAFETY: no preconditions.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        println!("skipped: mlockall: {}", io::Error::last_os_error());
        return;
    }
    let before = resident();
    let machine = Machine::uniform(64).unwrap();
    let builder = PerCpuAllocator::builder().machine(machine).cache_size(0);
    let pcpu = match builder.balance(BalanceMode::Manual).build() {
        Ok(pcpu) => pcpu,
        Err(error) => {
            println!("skipped: RLIMIT_MEMLOCK counts address space: {error}");
            return;
        }
    };
    let counter = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    counter.inc();
    let taken = resident() - before;
    println!("a counter on 64 CPUs: {taken} bytes");
    assert!(taken < 4 << 20, "{taken} bytes");
    assert_eq!(counter.sum(), 1);

    // What is given back is given back although it is locked.
    let fill = |_| PerCpu::<[u64; 1024]>::new_in(&pcpu, Gfp::KERNEL, |_| [1; 1024]).unwrap();
    let mut areas: Vec<_> = (0..300).map(fill).collect();
    let full = resident();
    assert!(full - before > 300 * 64 * 8192, "{} bytes", full - before);
    areas.truncate(1);
    pcpu.balance();
    let left = resident() - before;
    println!("{} bytes when full, {left} when freed", full - before);
    assert!(left < (full - before) / 2, "{left} of {} bytes", full - before);
    let zeroed: Vec<_> =
        (0..100).map(|_| PerCpu::<[u64; 1024]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap()).collect();
    assert!(zeroed.iter().flat_map(|area| area.iter()).all(|(_, copy)| *copy == [0; 1024]));
}
