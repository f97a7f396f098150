use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// Effective values of children given by usage and setting.
fn distribute(effective: u64, children: &[(u64, u64)]) -> Vec<u64> {
    distribute_to(effective, children, |_claimed| 0)
}

/// As [`distribute`], with recursive protection, for a parent that uses so much.
fn distribute_recursively(effective: u64, usage: u64, children: &[(u64, u64)]) -> Vec<u64> {
    distribute_to(effective, children, |claimed| u128::from(usage).saturating_sub(claimed))
}

fn distribute_to(
    effective: u64,
    children: &[(u64, u64)],
    unprotected: impl FnOnce(u128) -> u128,
) -> Vec<u64> {
    let claims = children.iter().map(|&(usage, setting)| u128::from(claim(usage, setting)));
    let claimed = claims.sum();
    let protection = Protection::Shared { effective, claimed, unprotected: unprotected(claimed) };
    children.iter().map(|&(usage, setting)| protection.of_child(usage, setting)).collect()
}

fn total(values: &[u64]) -> u128 {
    values.iter().map(|&value| u128::from(value)).sum()
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
fn reclaim_in_small_steps_converges_as_kernels_selftest_expects() {
    for is_recursive in [false, true] {
        let mut children = EXAMPLE;
        let usage = |children: &[(u64, u64)]| children.iter().map(|(usage, _)| usage).sum::<u64>();
        let mut steps = 0;
        while usage(&children) > 50 * MIB + MIB / 100 {
            let distributed = match is_recursive {
                false => distribute(50 * MIB, &children),
                true => distribute_recursively(50 * MIB, usage(&children), &children),
            };
            // Pressure takes from each a fraction of what is not protected.
            for (child, effective) in children.iter_mut().zip(distributed) {
                child.0 -= child.0.saturating_sub(effective).div_ceil(64);
            }
            steps += 1;
            assert!(steps < 100_000, "{children:?}");
        }
        let [c, d, e, f] = children.map(|(usage, _)| usage as f64 / MIB as f64);
        assert!((c - 29.0).abs() < 1.0 && (d - 21.0).abs() < 1.0, "{c} {d}");
        assert!(e < 1.0 && f == 0.0, "{e} {f}");
    }
}

#[test]
fn recursive_protection_cuts_claims_above_the_parents_alike() {
    let usage = EXAMPLE.iter().map(|(usage, _)| usage).sum();
    let effective = distribute_recursively(50 * MIB, usage, &EXAMPLE);
    assert_eq!(effective, distribute(50 * MIB, &EXAMPLE));
    // As much is claimed as there is: nothing is left to share.
    let children = [(60, 30), (60, 70), (60, 0)];
    assert_eq!(distribute_recursively(90, 180, &children), [30, 60, 0]);
    assert_eq!(distribute_recursively(91, 180, &children), [30, 60, 0], "1 × 30/90 and 1 × 60/90");
    assert_eq!(distribute_recursively(93, 180, &children), [31, 60, 2]);
}

#[test]
fn recursive_protection_shares_the_rest_by_unprotected_usage() {
    // The drawing of the module: a fifth of the parent's usage is no child's.
    let children = [(40 * MIB, 20 * MIB), (40 * MIB, 0)];
    let effective = distribute_recursively(50 * MIB, 100 * MIB, &children);
    assert_eq!(effective, [27 * MIB + MIB / 2, 15 * MIB]);
    assert_eq!(distribute(50 * MIB, &children), [20 * MIB, 0]);

    assert_eq!(distribute_recursively(50, 100, &[(30, 0), (70, 0), (0, 0)]), [15, 35, 0]);
    assert_eq!(distribute_recursively(50, 100, &[(50, 0)]), [25]);
    assert_eq!(distribute_recursively(50, 100, &[(100, 0)]), [50]);
    // A claim that is below usage by a byte takes part with that byte.
    assert_eq!(distribute_recursively(50, 41, &[(41, 40)]), [41]);
    assert_eq!(distribute_recursively(0, 41, &[(41, 40)]), [0]);
}

#[test]
fn parent_protected_as_whole_protects_all_below_it_recursively() {
    for effective in [100, 101, 1000, u64::MAX] {
        assert_eq!(distribute_recursively(effective, 100, &[(30, 0), (50, 20)]), [30, 50]);
    }
    assert_eq!(
        distribute_recursively(99, 100, &[(30, 0), (50, 20)]),
        [29, 49],
        "a byte is missing"
    );
}

/// The usage of a child is read after that of its parent, and may be larger by then.
#[test]
fn a_child_that_just_grew_gets_no_more_than_there_is() {
    assert_eq!(distribute_recursively(50, 10, &[(1000, 0)]), [50]);
    assert_eq!(distribute_recursively(50, 0, &[(1000, 0)]), [0]);
    assert_eq!(distribute_recursively(50, 10, &[(1000, 20)]), [20]);
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
    assert_eq!(distribute_recursively(max, max, &[(max, 0)]), [max]);
    assert_eq!(distribute_recursively(1 << 63, max, &[(max, 0)]), [1 << 63]);
    assert_eq!(distribute_recursively(max, max, &[(max, 1)]), [max]);
}

fn figure() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(bits, shift)| bits >> shift)
}

proptest! {
    #[test]
    fn nobody_gets_more_than_claim_or_together_more_than_there_is(
        effective in figure(),
        children in prop::collection::vec((figure(), figure()), 0..8),
    ) {
        let claims: Vec<u64> = children.iter().map(|&(usage, setting)| claim(usage, setting)).collect();
        let granted = distribute(effective, &children);
        prop_assert!(granted.iter().zip(&claims).all(|(granted, claim)| granted <= claim));
        prop_assert!(total(&granted) <= effective.into());
        if total(&claims) <= effective.into() {
            prop_assert_eq!(granted, claims);
        } else {
            // Rounding leaves less than a byte a child.
            prop_assert!(total(&granted) + children.len() as u128 > effective.into());
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
        let protection = Protection::Shared { effective, claimed, unprotected: 0 };
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

    #[test]
    fn recursive_protection_is_bounded_by_claim_and_usage(
        effective in figure(),
        own in figure(),
        children in prop::collection::vec((figure(), figure()), 0..8),
    ) {
        let (usages, settings): (Vec<u64>, Vec<u64>) = children.iter().copied().unzip();
        let usage = u128::from(own) + total(&usages);
        prop_assume!(usage <= u64::MAX.into());
        let granted = distribute_recursively(effective, usage as u64, &children);
        let without = distribute(effective, &children);
        prop_assert!(granted.iter().zip(&usages).all(|(granted, usage)| granted <= usage));
        prop_assert!(granted.iter().zip(&without).all(|(granted, without)| granted >= without));
        prop_assert!(total(&granted) <= effective.into());
        let claimed = children.iter().map(|&(usage, setting)| u128::from(claim(usage, setting)));
        let claimed: u128 = claimed.sum();
        if own == 0 && claimed <= effective.into() {
            // All of it is given out, up to less than a byte a child.
            let given = total(&granted) + children.len() as u128;
            prop_assert!(given >= usage.min(effective.into()), "{:?} {:?}", granted, settings);
        }
    }

    #[test]
    fn what_the_parent_gains_no_child_loses_recursively(
        effective in [figure(), figure()],
        own in 0..1u64 << 32,
        children in prop::collection::vec((0..1u64 << 32, figure()), 1..8),
    ) {
        let usage = own + children.iter().map(|(usage, _)| usage).sum::<u64>();
        let [less, more] = if effective[0] < effective[1] { effective } else { [effective[1], effective[0]] };
        let [less, more] = [less, more].map(|effective| distribute_recursively(effective, usage, &children));
        prop_assert!(less.iter().zip(&more).all(|(less, more)| less <= more));
    }
}
