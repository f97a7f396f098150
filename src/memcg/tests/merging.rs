//! Charges that are merged at one moment of a removal.

use crate::memcg::tests::own_cpu;

/// Between the mark of a removal and the move of the tokens, the child's token still points at the
/// child, while the parent pays. What was charged at the parent must not refer to that token: the
/// child's counter lacks it (M6).
#[test]
fn what_merges_during_a_removal_refers_to_the_higher_token() {
    for child_first in [true, false] {
        let parent = own_cpu::root().create("parent").unwrap();
        let child = parent.create("child").unwrap();
        let words = parent.current();
        // Too large for stocks.
        let mut charges = [&child, &parent].map(|memcg| memcg.charge(300_000).unwrap());
        child.node().mark_removed();
        if !child_first {
            charges.reverse();
        }
        let [mut all, other] = charges;
        all.merge(other).unwrap();
        assert_eq!(all.bytes(), 600_000);
        all.shrink(400_000).unwrap();
        assert_eq!(parent.current(), words + 200_000);
        assert_eq!(child.node().counter().usage(), 300_000, "it counts nothing any more (M4)");
        drop(all);
        assert_eq!(parent.current(), words);
    }
}
