//! Static variables: their initial values, and every operation on them.

use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::StaticLocal;
use percpu_memcg::{PerCpuAllocator, per_cpu};

use crate::THREADS;
use crate::chains::{Chain, Operation};
use crate::conditions::{Condition, Detached, Trial, on_cpu, two_cpus, under};
use crate::operations::{
    Add, And, CompareExchange, Dec, FetchAdd, Inc, Or, Sub, SubIfAtLeast, Swap,
};
use crate::words::Static;

per_cpu! {
    static U8: u8 = 250;
    static I8: i8 = -7;
    static U16: u16 = 0xABCD;
    static I16: i16 = i16::MIN;
    static U32: u32 = 1 << 31;
    /// Attributes are kept.
    #[allow(clippy::unreadable_literal)]
    static I32: i32 = -1234567;
    static U64: u64 = u64::MAX / 3;
    static I64: i64 = 0;
    static USIZE: usize = 1;
    pub(crate) static ISIZE: isize = isize::MAX;
}

// Nobody changes these.
per_cpu! {
    static CONSTANT: u64 = 0x0123_4567_89AB_CDEF;
    static SMALL: u8 = 3;
    static COMPUTED: i32 = -(SIZE as i32);
    static ZERO: i64 = 0;
    static LAST: i16 = -2;
    /// A name that a macro might use itself.
    static NAMED: u64 = INITIAL;
}

const INITIAL: u64 = 77;

const SIZE: usize = 12;

/// Trials of `O` on every variable.
fn on_variables<O: Operation>() -> Vec<Box<dyn Trial>> {
    macro_rules! trials {
        ($($int:ident $variable:ident),*) => {
            vec![$(Box::new(Chain::<O, $int, _>::new(Static(&$variable)))),*]
        };
    }
    trials!(
        u8 U8, i8 I8, u16 U16, i16 I16, u32 U32, i32 I32, u64 U64, i64 I64, usize USIZE,
        isize ISIZE
    )
}

/// One test, because the variables are the process's.
#[test]
fn every_operation_on_a_static_variable_loses_nothing() {
    fn briefly<O: Operation>() {
        let alone = Detached::without_area(THREADS / 2);
        let moved = Condition::MIGRATIONS.briefly();
        under(&moved, O::NAME, Detached::Threads(0), &mut on_variables::<O>());
        under(&Condition::WITHOUT_AREAS.briefly(), O::NAME, alone, &mut on_variables::<O>());
    }
    briefly::<Add>();
    briefly::<Sub>();
    briefly::<Inc>();
    briefly::<Dec>();
    briefly::<Or>();
    briefly::<And>();
    briefly::<Swap>();
    briefly::<CompareExchange>();
    briefly::<FetchAdd>();
    briefly::<SubIfAtLeast>();
}

fn assert_initial<N: percpu_memcg::this_cpu::LocalInt>(variable: &StaticLocal<N>, initial: N) {
    assert_eq!(variable.initial(), initial);
    let machine = PerCpuAllocator::global().unwrap().machine();
    for cpu in machine.possible() {
        assert_eq!(variable.get(*cpu), Some(initial), "on CPU {cpu}");
    }
    assert_eq!(variable.get(CpuId::new(machine.cpu_id_limit() as u32)), None);
    assert_eq!(variable.get(CpuId::new(u32::MAX)), None);
    assert_eq!(variable.detached(), N::default());
    for cpu in two_cpus() {
        assert_eq!(on_cpu(cpu, || variable.read()), initial);
    }
}

#[test]
fn a_variable_begins_with_its_value_on_every_cpu() {
    assert_initial(&CONSTANT, 0x0123_4567_89AB_CDEF);
    assert_initial(&SMALL, 3);
    assert_initial(&COMPUTED, -12);
    assert_initial(&NAMED, 77);
    assert_initial(&ZERO, 0);
    assert_initial(&LAST, -2);
    let cpus = PerCpuAllocator::global().unwrap().machine().nr_possible();
    assert_eq!(LAST.sum(), -2 * cpus as i16);
    assert_eq!(CONSTANT.sum(), 0x0123_4567_89AB_CDEF_u64.wrapping_mul(cpus as u64));
}

#[test]
fn a_variable_is_counted_in_by_many_threads() {
    per_cpu! {
        static COUNT: u32 = 1000;
    }
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..50_000).for_each(|_| COUNT.inc()));
        }
    });
    let machine = PerCpuAllocator::global().unwrap().machine();
    let counted = 50_000 * THREADS as u32;
    assert_eq!(COUNT.sum(), 1000 * machine.nr_possible() as u32 + counted);
    let copies = machine.possible().iter().map(|cpu| COUNT.get(*cpu).unwrap());
    assert_eq!(copies.map(|copy| copy - 1000).sum::<u32>(), counted);
}
