//! A part of a cgroup that most cgroups never need: one pointer until it is asked for.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use crate::sys::own::own;

/// Nothing at first, and one `T` for good from the first [`get_or_init`](OnceArc::get_or_init).
pub(crate) struct OnceArc<T> {
    value: ArcSwapOption<T>,
}

impl<T> OnceArc<T> {
    pub(crate) const fn new() -> Self {
        OnceArc { value: ArcSwapOption::const_empty() }
    }

    /// The value, if it was ever asked for.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }
}

impl<T: Default> OnceArc<T> {
    /// The value, made now if there is none. All callers get the same one.
    pub(crate) fn get_or_init(&self) -> Arc<T> {
        self.get().unwrap_or_else(|| {
            // The library keeps it for all callers, so the first one does not pay.
            let new = own(|| Arc::new(T::default()));
            let none: Option<Arc<T>> = None;
            let before = self.value.compare_and_swap(&none, Some(Arc::clone(&new)));
            // A caller that comes second takes what the first has stored.
            Guard::into_inner(before).unwrap_or(new)
        })
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceArc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn costs_a_pointer() {
        assert_eq!(size_of::<OnceArc<[u64; 12]>>(), size_of::<*const ()>());
    }

    #[test]
    fn threads_that_race_get_one_value() {
        for _ in 0..200 {
            let (value, start) = (OnceArc::<u64>::new(), Barrier::new(3));
            assert!(value.get().is_none());
            let get = || {
                start.wait();
                value.get_or_init()
            };
            let all = thread::scope(|scope| {
                [(); 3].map(|()| scope.spawn(get)).map(|thread| thread.join().unwrap())
            });
            let stored = value.get().unwrap();
            assert!(all.iter().all(|one| Arc::ptr_eq(one, &stored)));
        }
    }
}
