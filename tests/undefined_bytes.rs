//! What a value leaves behind where it has no value: padding, and what was never written.
//!
//! A freed area is given out again as zeros. Its bytes may be looked at before, to spare what is
//! zero already, but only those that have a value: the rest is overwritten unread. Valgrind sees the
//! difference. Each test fills an area with bytes that have no value, frees it, and allocates there
//! again; [`nothing_is_read_that_has_no_value`] runs this binary under valgrind.

use std::cell::Cell;
use std::env;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use percpu_memcg::allocator::Populate;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::{Gfp, Machine, PerCpu, PerCpuAllocator, PerCpuPool};
use zerocopy::FromZeros;

/// Set in the process that valgrind runs.
const CHILD: &str = "PERCPU_MEMCG_TEST_CHILD";

const BYTES: usize = 48;

/// 7 bytes of padding in the middle and 6 at the end.
#[derive(Clone, Copy, FromZeros)]
#[repr(C)]
struct Padded {
    first: u8,
    rest: [u64; 4],
    last: u16,
}

const _: () = assert!(size_of::<Padded>() == BYTES);

/// A value whose padding was never written, as it was in memory that was never written. All else is 0,
/// or valgrind would see that the whole is not 0, whatever the padding.
fn padded() -> Padded {
    let mut value: Box<MaybeUninit<Padded>> = black_box(Box::new_uninit());
    let place = value.as_mut_ptr();
    // SAFETY: in the box.
    let first = unsafe { &raw mut (*place).first };
    // SAFETY: as above.
    let rest = unsafe { &raw mut (*place).rest };
    // SAFETY: as above.
    let last = unsafe { &raw mut (*place).last };
    // SAFETY: a field of the box.
    unsafe { first.write(0) };
    // SAFETY: as above.
    unsafe { rest.write([0; 4]) };
    // SAFETY: as above.
    unsafe { last.write(0) };
    // SAFETY: all fields were written.
    unsafe { *black_box(value).assume_init() }
}

/// Bytes that were never written.
fn unwritten() -> MaybeUninit<[u8; BYTES]> {
    *black_box(Box::<MaybeUninit<[u8; BYTES]>>::new(MaybeUninit::uninit()))
}

fn allocator() -> PerCpuAllocator {
    let machine = Machine::uniform(3).unwrap();
    PerCpuAllocator::builder().machine(machine).build().unwrap()
}

/// Allocates at the place that was freed last, in all sizes that may share granules with it, and
/// looks at every byte.
#[track_caller]
fn assert_given_out_as_zeros(pcpu: &PerCpuAllocator) {
    for _ in 0..3 {
        let small = PerCpu::<[u8; 20]>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        let words = PerCpu::<[u64; BYTES / 8]>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        let large = PerCpu::<[u64; 100]>::zeroed_in(pcpu, Gfp::NOWAIT);
        assert!(small.iter().all(|(_, bytes)| *bytes == [0; 20]));
        assert!(words.iter().all(|(_, words)| *words == [0; BYTES / 8]));
        if let Ok(large) = large {
            assert!(large.iter().all(|(_, words)| *words == [0; 100]));
        }
    }
    assert_eq!(pcpu.verify(), Ok(()));
}

#[test]
fn padding_of_values_that_were_dropped() {
    let pcpu = allocator();
    drop(PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| padded()).unwrap());
    assert_given_out_as_zeros(&pcpu);
}

#[test]
fn values_that_were_never_written() {
    let pcpu = allocator();
    drop(PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| unwritten()).unwrap());
    assert_given_out_as_zeros(&pcpu);
}

#[test]
fn an_area_between_others_that_were_initialised() {
    let pcpu = allocator();
    let ones = || PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| [0u64; 2]).unwrap();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let around = (ones(), PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| padded()).unwrap(), ones());
        let (mut left, mut middle, mut right) = (Some(around.0), Some(around.1), Some(around.2));
        for nth in order {
            match nth {
                0 => drop(left.take()),
                1 => drop(middle.take()),
                _ => drop(right.take()),
            }
        }
        assert_given_out_as_zeros(&pcpu);
    }
}

#[test]
fn an_initialiser_that_panics() {
    let pcpu = allocator();
    let result = catch_unwind(AssertUnwindSafe(|| {
        PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| match cpu.get() {
            2 => panic!("on purpose"),
            _ => padded(),
        })
    }));
    assert!(result.is_err());
    assert_given_out_as_zeros(&pcpu);
}

#[test]
fn a_drop_that_panics() {
    struct Bomb(#[allow(dead_code)] Padded, bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.1, "on purpose");
        }
    }
    let pcpu = allocator();
    let bombs = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| Bomb(padded(), cpu.get() == 1)).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(bombs))).is_err());
    assert_given_out_as_zeros(&pcpu);
}

#[test]
fn zeroed_values_that_were_assigned_to() {
    let pcpu = allocator();
    let mut object = PerCpu::<Padded>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    let cpus = object.cpus().to_vec();
    *object.get_mut(cpus[1]).unwrap() = padded();
    drop(object);
    assert_given_out_as_zeros(&pcpu);

    let mut object = PerCpu::<MaybeUninit<[u8; BYTES]>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    object.iter_mut().for_each(|(_, bytes)| *bytes = unwritten());
    drop(object);
    assert_given_out_as_zeros(&pcpu);
}

#[test]
fn zeroed_values_assigned_to_through_shared_references() {
    let pcpu = allocator();
    let object = PerCpu::<Cell<Padded>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    object.iter().for_each(|(_, cell)| cell.set(padded()));
    drop(object);
    assert_given_out_as_zeros(&pcpu);
}

#[test]
fn in_the_window_of_large_alignments() {
    #[derive(Clone, Copy)]
    #[repr(C, align(256))]
    struct Wide(#[allow(dead_code)] Padded);
    let pcpu = allocator();
    let wide = || {
        let mut value: Box<MaybeUninit<Wide>> = black_box(Box::new_uninit());
        value.write(Wide(padded()));
        // SAFETY: written.
        unsafe { *black_box(value).assume_init() }
    };
    #[derive(FromZeros)]
    #[repr(C, align(256))]
    struct Words([u64; 32]);
    for _ in 0..3 {
        drop(PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| wide()).unwrap());
        // The same granules in either window.
        assert_given_out_as_zeros(&pcpu);
        let words = PerCpu::<Words>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
        assert!(words.iter().all(|(_, words)| words.0 == [0; 32]));
    }
}

/// Memory that was never written.
fn never_written<T>() -> MaybeUninit<T> {
    *black_box(Box::new(MaybeUninit::uninit()))
}

/// Objects of this layout without a value, in all the ways in which areas are placed and freed.
#[track_caller]
fn objects_without_a_value<T: Send + 'static>(pcpu: &PerCpuAllocator) {
    type Bytes<T> = MaybeUninit<T>;
    let tenant = pcpu.root().create("tenant").unwrap();
    // More than a CPU keeps, in runs of neighbours, and in another order than they were placed in.
    let mut objects: Vec<_> = (0..40)
        .map(|nth| match nth % 3 {
            0 => PerCpu::new_in(pcpu, Gfp::KERNEL, |_| never_written::<T>()).unwrap(),
            1 => PerCpu::new_for(&tenant, |_| never_written::<T>()).unwrap(),
            _ => {
                let mut object = PerCpu::<Bytes<T>>::zeroed_for(&tenant).unwrap();
                object.iter_mut().for_each(|(_, value)| *value = never_written());
                object
            }
        })
        .collect();
    (0..20).for_each(|nth| drop(objects.swap_remove(nth)));
    assert_given_out_as_zeros(pcpu);
    for mut object in PerCpu::<Bytes<T>>::zeroed_many_for(&tenant, 10).unwrap() {
        object.iter_mut().for_each(|(_, value)| *value = never_written());
    }
    assert_given_out_as_zeros(pcpu);
    drop(objects);
    assert_given_out_as_zeros(pcpu);
    let reset = |object: &mut PerCpu<Bytes<T>>| {
        object.iter_mut().for_each(|(_, value)| *value = never_written());
    };
    let pool = PerCpuPool::new_for(&tenant, |_| never_written::<T>(), reset).unwrap();
    for _ in 0..2 {
        drop([(); 5].map(|()| pool.take(&tenant).unwrap()));
    }
    assert!(pool.shrink(3) > 0);
    assert_given_out_as_zeros(pcpu);
    drop(pool);
    pcpu.trim();
    assert_given_out_as_zeros(pcpu);
    let panicking = || {
        PerCpu::new_for(&tenant, |cpu| {
            assert_ne!(pcpu.machine().possible().last(), Some(&cpu), "on purpose");
            never_written::<T>()
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    assert_given_out_as_zeros(pcpu);
    tenant.remove().unwrap();
}

#[test]
fn values_of_every_size_and_alignment() {
    macro_rules! aligned {
        ($($align:literal)*) => {$({
            #[repr(C, align($align))]
            struct Aligned(#[allow(dead_code)] [u8; $align + 1]);
            objects_without_a_value::<Aligned>(&allocator());
        })*};
    }
    aligned!(16 32 64 128 256 1024 4096);
    let pcpu = allocator();
    objects_without_a_value::<u8>(&pcpu);
    objects_without_a_value::<[u8; 5]>(&pcpu);
    objects_without_a_value::<Option<u32>>(&pcpu);
    objects_without_a_value::<(u8, u128)>(&pcpu);
    objects_without_a_value::<Result<u128, u8>>(&pcpu);
    objects_without_a_value::<[u8; 1009]>(&pcpu);
    objects_without_a_value::<[u8; 32_000]>(&pcpu);
}

#[test]
fn on_machines_of_many_kinds() {
    let holes =
        Machine::builder().cpu(CpuId::new(0), NodeId::new(0)).cpu(CpuId::new(5), NodeId::new(1));
    let machines = [
        Machine::uniform(1),
        holes.cpu(CpuId::new(9), NodeId::new(0)).build(),
        Machine::uniform(70),
    ];
    for machine in machines {
        let machine = machine.unwrap();
        for populate in [Populate::Lazy, Populate::Whole] {
            for cache in [0, 1 << 15] {
                let pcpu = PerCpuAllocator::builder().machine(machine.clone()).cache_size(cache);
                let pcpu = pcpu.populate(populate).build().unwrap();
                objects_without_a_value::<(u16, u64)>(&pcpu);
            }
        }
    }
}

#[test]
fn enum_variants_that_are_smaller() {
    #[derive(Clone, Copy)]
    enum Value {
        Small(u8),
        Large([u64; 7]),
    }
    let value = |small| match small {
        true => Value::Small(0),
        false => Value::Large([0; 7]),
    };
    let pcpu = allocator();
    for round in 0..3 {
        let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| {
            Cell::new(black_box(Box::new(value(cpu.index() == round))).as_ref().to_owned())
        });
        let object = object.unwrap();
        object.iter().for_each(|(cpu, cell)| cell.set(value(cpu.index() != round)));
        let sizes = object.iter().map(|(_, cell)| match cell.get() {
            Value::Small(byte) => usize::from(byte),
            Value::Large(words) => words.len(),
        });
        assert_eq!(sizes.sum::<usize>(), 7);
        drop(object);
        assert_given_out_as_zeros(&pcpu);
    }
}

#[test]
fn nothing_is_read_that_has_no_value() {
    if env::var_os(CHILD).is_some() {
        return;
    }
    if cfg!(target_env = "musl") {
        println!("skipped: valgrind does not know an allocator that is linked statically");
        return;
    }
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|it| it.status.success()) {
        println!("skipped: there is no valgrind");
        return;
    }
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=99", "--fair-sched=yes"]);
    command.arg(env::current_exe().expect("the binary has a path"));
    command.args(["--test-threads=1"]).env(CHILD, "1");
    let output = command.output().expect("valgrind runs");
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    assert!(text.contains("test result: ok."), "{text}");
}
