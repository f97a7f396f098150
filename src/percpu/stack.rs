//! A stack on every CPU.

use std::fmt;
use std::iter;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::PerCpu;
use crate::sys::{
    ByCpu, CopyIndex, LocalInt, STACK_HEADER, STACK_LOCKED, Word, pop_fallback, push_fallback,
};

/// A stack of up to `CAP` integers, for caches: indices or offsets of free things that the next
/// user on the same CPU takes.
///
/// [`PerCpu::push`] and [`PerCpu::pop`] work on the stack of the CPU that runs the thread. A push
/// may be refused and a pop may find nothing although other CPUs have room or items; without
/// sequences also because another thread is using the same stack. Nothing ever waits. Without
/// sequences a forked child finds a stack that another thread was using at that moment full and
/// empty, until it is [drained](PerCpu::drain).
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::LocalStack;
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut free = PerCpu::<LocalStack<u32, 16>>::zeroed_for(&tenant)?;
/// free.push(7).expect("the stack of this CPU is empty");
/// let taken = free.pop(); // 7, unless the thread moved to another CPU
/// let left: Vec<u32> = free.drain().collect();
/// assert_eq!(taken.into_iter().chain(left).collect::<Vec<_>>(), [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(FromZeros)]
#[repr(C, align(8))]
pub struct LocalStack<N: LocalInt, const CAP: usize, I: CopyIndex = ByCpu> {
    len: AtomicU32,
    padding: AtomicU32,
    items: [N::Atomic; CAP],
    index: PhantomData<I>,
}

/// A push that was refused; holds the item.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::StackFull;
/// use percpu_memcg::this_cpu::LocalStack;
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let free = PerCpu::<LocalStack<u32, 4>>::zeroed_for(&tenant)?;
/// let mut shared = Vec::new(); // for what no CPU keeps
/// while shared.is_empty() {
///     if let Err(StackFull(item)) = free.push(7) {
///         shared.push(item);
///     }
/// }
/// assert_eq!(shared, [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this CPU's stack has no room")]
pub struct StackFull<N>(pub N);

impl<N: LocalInt, const CAP: usize, I: CopyIndex> LocalStack<N, CAP, I> {
    const LAYOUT: () = {
        assert!(offset_of!(Self, items) == STACK_HEADER);
        assert!(CAP < 1 << 31, "a length has 31 bits");
    };

    /// How many items there are now: one relaxed load.
    pub fn len(&self) -> usize {
        // While an atomic fallback works on it there is a lock bit.
        (self.len.load(Ordering::Relaxed) & !STACK_LOCKED) as usize
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<N: LocalInt, const CAP: usize, I: CopyIndex> fmt::Debug for LocalStack<N, CAP, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStack").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<N: LocalInt, const CAP: usize, I: CopyIndex> PerCpu<LocalStack<N, CAP, I>> {
    #[inline(always)]
    fn word(&self) -> Word<'_, N, I> {
        const { LocalStack::<N, CAP, I>::LAYOUT };
        let (locator, first, _) = self.parts();
        // SAFETY: the object's area and its values (D1, D2); zero, as in the detached copy, is an
        // empty stack. Through a shared stack only `push` and `pop` write to the copies. An exclusive
        // one can be drained or replaced by another: then as well its length is at most `CAP`.
        unsafe { Word::new(locator, first.as_ptr().cast()) }
    }

    /// Pushes onto this CPU's stack.
    ///
    /// # Errors
    ///
    /// [`StackFull`] with the item.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::this_cpu::LocalStack;
    /// use percpu_memcg::{PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let free = PerCpu::<LocalStack<u32, 2>>::zeroed_for(&tenant)?;
    /// let items = 0..100_000; // more than all CPUs have room for
    /// let refused: Vec<_> = items.filter_map(|item| free.push(item).err()).collect();
    /// assert!(refused.len() < 100_000 && refused[0].0 > 0); // the item comes back
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn push(&self, item: N) -> Result<(), StackFull<N>> {
        let len = self.word().run(
            move |at| N::push(at, item, CAP as u32),
            move |stack| {
                // SAFETY: `run` gives a valid copy, for atomic instructions.
                let stack = unsafe { &*stack.cast::<LocalStack<N, CAP, I>>() };
                push_fallback(&stack.len, &stack.items, item)
            },
            || self.parts().2.arena().machine(),
        );
        if len < CAP as u32 { Ok(()) } else { Err(StackFull(item)) }
    }

    /// Pops the item pushed last onto this CPU's stack.
    #[inline]
    pub fn pop(&self) -> Option<N> {
        let (len, item) = self.word().run(
            |at| N::pop(at),
            |stack| {
                // SAFETY: `run` gives a valid copy, for atomic instructions.
                let stack = unsafe { &*stack.cast::<LocalStack<N, CAP, I>>() };
                pop_fallback::<N>(&stack.len, &stack.items)
            },
            || self.parts().2.arena().machine(),
        );
        (len > 0).then_some(item)
    }

    /// Pops from the stacks of all CPUs, one after the other; what is not asked for remains.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::this_cpu::LocalStack;
    /// use percpu_memcg::{PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let mut free = PerCpu::<LocalStack<u32, 16>>::zeroed_for(&tenant)?;
    /// for item in 0..3 {
    ///     free.push(item).expect("it has room for 16");
    /// }
    /// assert!(free.drain().next().is_some()); // the other two remain
    /// assert_eq!(free.drain().count(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain(&mut self) -> impl Iterator<Item = N> {
        let (_, first, tree) = self.parts();
        // SAFETY: the object's copies, and the detached one; `&mut self` excludes operations.
        let stacks = tree.arena().copies(first.as_ptr()).map(|stack| unsafe { &mut *stack });
        stacks.flat_map(|stack: &mut LocalStack<N, CAP, I>| {
            let len = stack.len.get_mut();
            // Set where a fork left behind the thread that set it, which had changed nothing yet.
            *len &= !STACK_LOCKED;
            iter::from_fn(|| {
                let top = len.checked_sub(1)?;
                *len = top;
                Some(N::read_fallback(&stack.items[top as usize]))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcg::Gfp;
    use crate::percpu::PerCpuAllocator;
    use crate::sys::Machine;

    #[test]
    fn drain_unlocks_what_a_fork_left_locked() {
        let pcpu = PerCpuAllocator::builder().machine(Machine::uniform(1).unwrap()).build();
        let mut stacks =
            PerCpu::<LocalStack<u32, 4>>::zeroed_in(&pcpu.unwrap(), Gfp::KERNEL).unwrap();
        let cpus = stacks.cpus().to_vec();
        for cpu in cpus {
            let stack = stacks.get(cpu).unwrap();
            [7, 8].iter().for_each(|item| {
                push_fallback::<u32>(&stack.len, &stack.items, *item);
            });
            stack.len.fetch_or(STACK_LOCKED, Ordering::Relaxed);
            assert_eq!(pop_fallback::<u32>(&stack.len, &stack.items), (0, 0), "locked");
            assert_eq!(stack.len(), 2);
            assert!(stacks.drain().eq([8, 7]));
            let stack = stacks.get(cpu).unwrap();
            assert_eq!(push_fallback::<u32>(&stack.len, &stack.items, 9), 0, "empty, with room");
        }
    }
}
