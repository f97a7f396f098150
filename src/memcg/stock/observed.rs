//! Which CPUs' stocks a thread has looked at, and stocks of CPUs that the real machine lacks; for
//! tests.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;

use crate::memcg::stock::Stock;
use crate::memcg::stock::objcg::Payer;
use crate::memcg::stock::word::StockWord;

thread_local! {
    static SEEN: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
}

/// The calling thread looks at a CPU's state.
pub(super) fn note(cpu: usize) {
    SEEN.with_borrow_mut(|seen| seen.insert(cpu));
}

/// The CPUs that the calling thread has looked at since the last call.
pub(crate) fn take() -> BTreeSet<usize> {
    SEEN.with_borrow_mut(mem::take)
}

impl<P: Payer> Stock<P> {
    /// Puts `bytes` that are charged into the stock of a CPU on which no thread can run.
    pub(crate) fn fill(&self, cpu: usize, payer: &Arc<P>, bytes: u64) {
        let token = payer.token();
        let mut grants = self.cpus[cpu].lock_to_admit(cpu, payer).expect("no other thread");
        let place = grants.next_place();
        token.cpus().insert(cpu);
        assert!(P::note_stocked(payer) && payer.may_stock());
        let granted = |word| StockWord::from_bits(word).granted(bytes, place).put(bytes, 0);
        let old = token.words().update(cpu, |word| granted(word).map(StockWord::bits));
        assert_eq!(old.map(StockWord::from_bits).map(StockWord::grant), Some(0), "one grant");
        grants.insert(token, bytes);
    }
}
