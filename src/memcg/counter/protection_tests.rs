use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// Effective values of children given by usage and setting.
fn distribute(effective: u64, children: &[(u64, u64)]) -> Vec<u64> {
    let claims = children.iter().map(|&(usage, setting)| u128::from(claim(usage, setting)));
    let protection = Protection::Shared { effective, claimed: claims.sum() };
    children.iter().map(|&(usage, setting)| protection.of_child(usage, setting)).collect()
}

/// The specification's twelfth example: usage and setting of C, D, E and F, of which the parent
/// protects 50 MiB.
const EXAMPLE: [(u64, u64); 4] =
    [(50 * MIB, 75 * MIB), (50 * MIB, 25 * MIB), (50 * MIB, 0), (0, 500 * MIB)];

#[test]
fn claims_above_the_parents_protection_are_cut_in_proportion() {
    let effective = distribute(50 * MIB, &EXAMPLE);
    assert_eq!(effective, [50 * MIB * 50 / 75, 50 * MIB * 25 / 75, 0, 0]);
    assert_eq!(effective, [34_952_533, 17_476_266, 0, 0]);
    for ((usage, _), effective) in EXAMPLE.into_iter().zip(effective) {
        assert_eq!(is_within(usage, effective), usage == 0);
    }
}

#[test]
fn reclaim_in_small_steps_converges_as_the_kernels_selftest_expects() {
    let mut children = EXAMPLE;
    let total = |children: &[(u64, u64)]| children.iter().map(|(usage, _)| usage).sum::<u64>();
    let mut steps = 0;
    while total(&children) > 50 * MIB + MIB / 100 {
        // Pressure takes from each a fraction of what is not protected.
        let distributed: Vec<_> = distribute(50 * MIB, &children).into_iter().collect();
        for (child, effective) in children.iter_mut().zip(distributed) {
            child.0 -= child.0.saturating_sub(effective).div_ceil(64);
        }
        steps += 1;
        assert!(steps < 100_000, "{children:?}");
    }
    let [c, d, e, f] = children.map(|(usage, _)| usage as f64 / MIB as f64);
    assert!((c - 29.0).abs() < 1.0 && (d - 21.0).abs() < 1.0 && e < 1.0 && f == 0.0, "{c} {d} {e}");
}

#[test]
fn claims_that_fit_are_granted_and_the_rest_protects_nobody() {
    assert_eq!(distribute(100, &[(60, 30), (60, 70), (60, 0)]), [30, 60, 0]);
    assert_eq!(distribute(90, &[(60, 30), (60, 70)]), [30, 60]);
    assert_eq!(distribute(89, &[(60, 30), (60, 70)]), [29, 59]);
    assert_eq!(distribute(0, &[(60, 30), (60, 70)]), [0, 0]);
    assert!(distribute(10, &[]).is_empty());
}

#[test]
fn below_the_cgroup_that_is_reclaimed_settings_hold_as_they_are() {
    assert_eq!(Protection::Literal.of_child(1, 500), 500);
    assert_eq!(Protection::Literal.of_child(500, 1), 1);
}

#[test]
fn usage_that_equals_its_protection_is_within() {
    assert!(is_within(4096, 4096) && is_within(0, 0) && !is_within(4097, 4096));
}

#[test]
fn products_of_large_figures_are_exact() {
    let max = u64::MAX;
    assert_eq!(distribute(max, &[(max, max), (max, max)]), [max / 2, max / 2]);
    assert_eq!(distribute(max - 1, &[(max, max)]), [max - 1]);
    assert_eq!(distribute(3 << 61, &[(1 << 63, max), (1 << 62, max)]), [1 << 62, 1 << 61]);
}

fn figure() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(bits, shift)| bits >> shift)
}

proptest! {
    #[test]
    fn nobody_gets_more_than_the_claim_or_together_more_than_there_is(
        effective in figure(),
        children in prop::collection::vec((figure(), figure()), 0..8),
    ) {
        let claims: Vec<u64> = children.iter().map(|&(usage, setting)| claim(usage, setting)).collect();
        let granted = distribute(effective, &children);
        let sum = |values: &[u64]| values.iter().map(|&value| u128::from(value)).sum::<u128>();
        prop_assert!(granted.iter().zip(&claims).all(|(granted, claim)| granted <= claim));
        prop_assert!(sum(&granted) <= effective.into());
        if sum(&claims) <= effective.into() {
            prop_assert_eq!(granted, claims);
        } else {
            // Rounding leaves less than a byte a child.
            prop_assert!(sum(&granted) + children.len() as u128 > effective.into());
        }
    }

    #[test]
    fn a_larger_claim_of_the_same_total_gets_no_less(
        effective in figure(),
        usage in figure(),
        settings in [figure(), figure()],
        others: u64,
    ) {
        let claimed = u128::from(usage) + u128::from(others);
        let protection = Protection::Shared { effective, claimed };
        let [less, more] = if settings[0] < settings[1] { settings } else { [settings[1], settings[0]] };
        prop_assert!(protection.of_child(usage, less) <= protection.of_child(usage, more));
    }

    #[test]
    fn what_the_parent_gains_no_child_loses(
        effective in [figure(), figure()],
        children in prop::collection::vec((figure(), figure()), 1..8),
    ) {
        let [less, more] = if effective[0] < effective[1] { effective } else { [effective[1], effective[0]] };
        let (less, more) = (distribute(less, &children), distribute(more, &children));
        prop_assert!(less.iter().zip(&more).all(|(less, more)| less <= more));
    }
}
