//! Every operation that changes a word, on every width, under every condition: exact.
//!
//! Amounts are arbitrary numbers of the word's width. `and` and `or` give the same result however
//! often they are carried out, so that one of them that is lost shows nowhere; but they may lose
//! the updates of others. Therefore they work on the low bits of a word that is counted in above
//! them.

use std::marker::PhantomData;

use percpu_memcg::this_cpu::{ByCpu, CopyIndex};
use percpu_memcg::{PerCpu, PerCpuAllocator};

use crate::chains::{Chain, Change, Operation};
use crate::conditions::{Detached, Trial, under_every_condition};
use crate::widths::{Generic, Width, every_width};
use crate::words::{Object, Words};
use crate::{KERNEL, real};

pub(crate) struct Add;

impl Operation for Add {
    const NAME: &'static str = "add";

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        words.add(N::truncated(choice));
        Change::by(choice)
    }
}

pub(crate) struct Sub;

impl Operation for Sub {
    const NAME: &'static str = "sub";

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        words.sub(N::truncated(choice));
        Change::by(choice.wrapping_neg())
    }
}

pub(crate) struct Inc;

impl Operation for Inc {
    const NAME: &'static str = "inc";

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, _choice: u64) -> Change {
        words.inc();
        Change::by(1)
    }
}

pub(crate) struct Dec;

impl Operation for Dec {
    const NAME: &'static str = "dec";

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, _choice: u64) -> Change {
        words.dec();
        Change::by(u64::MAX)
    }
}

/// Two flags, and a count above them.
const FLAGS: u32 = 2;

/// One or two of the flags.
fn flags(choice: u64) -> u64 {
    1 + choice % 3
}

pub(crate) struct Or;

impl Operation for Or {
    const NAME: &'static str = "or";
    const FLAGS: u32 = FLAGS;

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        words.or(N::truncated(flags(choice)));
        words.add(N::truncated(1 << FLAGS));
        Change::by(1)
    }
}

pub(crate) struct And;

impl Operation for And {
    const NAME: &'static str = "and";
    const FLAGS: u32 = FLAGS;

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        words.and(N::truncated(!flags(choice)));
        words.add(N::truncated(1 << FLAGS));
        words.and(N::truncated(!flags(choice >> 8)));
        words.or(N::truncated(flags(choice >> 16)));
        Change::by(1)
    }
}

pub(crate) struct Swap;

impl Operation for Swap {
    const NAME: &'static str = "swap";
    const TELLS: bool = true;

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        let new = N::truncated(choice);
        Change::between(words.swap(new).bits(), new.bits())
    }
}

pub(crate) struct CompareExchange;

impl Operation for CompareExchange {
    const NAME: &'static str = "compare_exchange";
    const TELLS: bool = true;

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, _choice: u64) -> Change {
        let mut old = words.read();
        loop {
            let new = old.bits().wrapping_add(1);
            match words.compare_exchange(old, N::truncated(new)) {
                Ok(_) => return Change::between(old.bits(), new),
                Err(found) => old = found,
            }
        }
    }
}

pub(crate) struct FetchAdd;

impl Operation for FetchAdd {
    const NAME: &'static str = "fetch_add";
    const TELLS: bool = true;

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        let old = words.fetch_add(N::truncated(choice)).bits();
        Change::between(old, old.wrapping_add(choice))
    }
}

pub(crate) struct SubIfAtLeast;

impl Operation for SubIfAtLeast {
    const NAME: &'static str = "sub_if_at_least";

    #[inline(always)]
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change {
        // More is asked for than given, so that about half is refused.
        let (give, take) = (choice % 8, choice >> 8 & 15);
        words.add(N::truncated(give));
        match words.sub_if_at_least(N::truncated(take)) {
            Ok(()) => Change::by(give.wrapping_sub(take)),
            Err(_) => Change::by(give),
        }
    }
}

/// Trials of `O` on new objects.
pub(crate) struct OnObjects<'a, O, I> {
    pub(crate) pcpu: &'a PerCpuAllocator,
    kind: PhantomData<fn(O, I)>,
}

impl<'a, O: Operation, I: CopyIndex> OnObjects<'a, O, I> {
    pub(crate) fn of(pcpu: &'a PerCpuAllocator) -> Self {
        OnObjects { pcpu, kind: PhantomData }
    }
}

impl<O: Operation, I: CopyIndex> Generic<Box<dyn Trial>> for OnObjects<'_, O, I> {
    fn of<N: Width>(&self) -> Box<dyn Trial> {
        let words = Object::<N, I>(PerCpu::zeroed_in(self.pcpu, KERNEL).expect("room"));
        Box::new(Chain::<O, N, _>::new(words))
    }
}

/// Trials of every operation above, each on every width.
pub(crate) fn every_operation<I: CopyIndex>(pcpu: &PerCpuAllocator) -> Vec<Box<dyn Trial>> {
    [
        every_width(&OnObjects::<Add, I>::of(pcpu)),
        every_width(&OnObjects::<Sub, I>::of(pcpu)),
        every_width(&OnObjects::<Inc, I>::of(pcpu)),
        every_width(&OnObjects::<Dec, I>::of(pcpu)),
        every_width(&OnObjects::<Or, I>::of(pcpu)),
        every_width(&OnObjects::<And, I>::of(pcpu)),
        every_width(&OnObjects::<Swap, I>::of(pcpu)),
        every_width(&OnObjects::<CompareExchange, I>::of(pcpu)),
        every_width(&OnObjects::<FetchAdd, I>::of(pcpu)),
        every_width(&OnObjects::<SubIfAtLeast, I>::of(pcpu)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn nothing_is_lost<O: Operation>() {
    let pcpu = real();
    under_every_condition(O::NAME, || every_width(&OnObjects::<O, ByCpu>::of(&pcpu)));
}

macro_rules! nothing_is_lost {
    ($($name:ident: $operation:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            nothing_is_lost::<$operation>();
        }
    )*};
}

nothing_is_lost! {
    add_loses_nothing: Add,
    sub_loses_nothing: Sub,
    inc_loses_nothing: Inc,
    dec_loses_nothing: Dec,
    or_loses_nothing_of_others: Or,
    and_loses_nothing_of_others: And,
    swap_returns_every_value_once: Swap,
    compare_exchange_succeeds_from_the_value_it_found: CompareExchange,
    fetch_add_returns_every_sum_once: FetchAdd,
    sub_if_at_least_takes_what_it_says: SubIfAtLeast,
}

/// A test of the tests: a word that was changed behind the books' back.
#[test]
fn books_notice_a_single_lost_update() {
    let pcpu = real();
    let words = Object::<u8, ByCpu>(PerCpu::zeroed_in(&pcpu, KERNEL).unwrap());
    let trial = Chain::<Inc, u8, _>::new(words);
    trial.work(0, 1000);
    assert!(trial.is_exact(Detached::Any));
    trial.words().dec();
    assert!(!trial.is_exact(Detached::Any));
    assert!(trial.loss(Detached::Any).is_some());
}
