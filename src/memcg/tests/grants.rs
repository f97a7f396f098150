//! Which tokens have a grant, when there are more than the budget of a CPU has room for.

use crate::memcg::handle::memcg::Memcg;
use crate::memcg::stock::grants::{BUDGET, MIN_GRANT};
use crate::memcg::tests::own_cpu;

/// An eviction takes the grant and the CPU's bit of its token, so that nobody looks there (T1).
#[test]
fn no_more_tokens_have_a_bit_than_the_budget_has_grants() {
    let cpu = own_cpu::pin();
    let root = own_cpu::root();
    let most = (BUDGET / MIN_GRANT) as usize;
    let leaves: Vec<Memcg> =
        (0..most + 500).map(|nth| root.create(&format!("{nth}")).unwrap()).collect();
    let with_bit = || leaves.iter().filter(|leaf| leaf.token().cpus().contains(cpu)).count();
    let mut evicted = 0;
    for leaf in leaves.iter().cycle().take(10 * leaves.len()) {
        let had = leaf.token().cpus().contains(cpu);
        drop(leaf.charge(100).unwrap());
        let is_new = !had && leaf.token().cpus().contains(cpu);
        evicted += usize::from(is_new && with_bit() == most);
    }
    assert!(evicted > 100, "the test met what it is about: {evicted}");
    assert!(with_bit() <= most, "{} of {most}", with_bit());
}
