//! How long a thread waits when its cgroup is above `memory.high`.
//!
//! The formula is that of the kernel's `mem_cgroup_handle_over_high` (Linux 6.18). The delay is
//! *r*² seconds for every page that was charged while usage was above `high`, where *r* = (usage −
//! high) / high. With usage a tenth above `high`, 64 pages cost 0.64 s. The delay is at most 2 s. A
//! delay of up to 10 ms is skipped.
//!
//! The kernel multiplies by 64 pages divided by its batch. That factor is 1, because its batch is
//! 64 pages.

use std::time::Duration;

use crate::memcg::counter::amount::Limit;

/// The longest delay: the kernel's `MEMCG_MAX_HIGH_DELAY_JIFFIES`, 2 seconds.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// The longest delay that is skipped: the kernel's 10 ms, below which a sleep costs more than it
/// helps.
const TOLERATED: Duration = Duration::from_millis(10);

/// Binary places of a [`HighDelay`]: the kernel's `MEMCG_DELAY_PRECISION_SHIFT`.
const FRACTION_BITS: u32 = 20;

/// log2 of the bytes that cost *r*² seconds: a page of 4096 bytes, on machines with larger pages
/// too.
const PAGE_BITS: u32 = 12;

/// The excess of usage above `high`, as a fraction of `high`.
///
/// It is ordered, because the largest excess of a cgroup and its ancestors counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HighDelay(u128);

impl HighDelay {
    /// The excess of one cgroup; 0 at or below `high`. A `high` of 0 counts as 1 byte.
    pub(crate) fn of(usage: u64, high: Limit) -> Self {
        let Some(high) = high.get() else { return HighDelay::default() };
        let above = u128::from(usage.saturating_sub(high));
        HighDelay((above << FRACTION_BITS) / u128::from(high.max(1)))
    }

    /// The delay for `bytes` that were charged while usage was above `high`.
    pub(crate) fn delay(self, bytes: u64) -> Duration {
        const NANOSECONDS: u128 = 1_000_000_000;
        // A saturated product is still 2^24 seconds, which is clamped below.
        let scaled = self.0.saturating_mul(self.0).saturating_mul(bytes.into());
        let nanoseconds = scaled.saturating_mul(NANOSECONDS) >> (2 * FRACTION_BITS + PAGE_BITS);
        let delay = u64::try_from(nanoseconds).map_or(MAX_DELAY, Duration::from_nanos);
        if delay <= TOLERATED { Duration::ZERO } else { delay.min(MAX_DELAY) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;

    fn delay(usage: u64, high: u64, pages: u64) -> Duration {
        HighDelay::of(usage, Limit::bytes(high)).delay(pages * PAGE)
    }

    #[track_caller]
    fn assert_seconds(delay: Duration, seconds: f64) {
        let difference = (delay.as_secs_f64() - seconds).abs();
        assert!(difference < seconds * 1e-4, "{delay:?} is not {seconds} s");
    }

    #[test]
    fn a_tenth_above_is_two_thirds_of_a_second_for_a_batch() {
        assert_seconds(delay(110 * MIB, 100 * MIB, 64), 0.64);
        assert_seconds(delay(1100, 1000, 64), 0.64);
        assert_seconds(delay(1100, 1000, 32), 0.32);
        assert_seconds(delay(1050, 1000, 64), 0.16);
    }

    #[test]
    fn the_wait_ends_at_two_seconds() {
        assert_eq!(delay(118, 100, 64), MAX_DELAY);
        assert!(delay(117, 100, 64) < MAX_DELAY);
        // The specification's eighth example: twice the limit, a batch was charged.
        assert_eq!(delay(64 * PAGE, 32 * PAGE, 64), MAX_DELAY);
    }

    #[test]
    fn ten_milliseconds_are_not_worth_a_sleep() {
        // 64 pages at an eightieth: exactly 10 ms, but for the rounding of the fraction.
        assert_eq!(delay(81, 80, 64), Duration::ZERO);
        // 2^-6 is exact: 2^-12 s a page.
        assert_eq!(delay(65, 64, 40), Duration::ZERO);
        assert_eq!(delay(65, 64, 41), Duration::from_nanos(41 * 1_000_000_000 / 4096));
        // Exactly 10 ms: a sixteenth, 1/256 s a page, and 2.56 pages.
        let excess = HighDelay::of(17, Limit::bytes(16));
        assert_eq!(excess.delay(256 * PAGE / 100), Duration::ZERO);
        assert_eq!(excess.delay(256 * PAGE / 100 + 1), Duration::from_nanos(10_000_228));
    }

    #[test]
    fn nobody_waits_at_high_or_without_it() {
        assert_eq!(delay(100, 100, 1 << 40), Duration::ZERO);
        assert_eq!(delay(99, 100, 1 << 40), Duration::ZERO);
        assert_eq!(HighDelay::of(u64::MAX, Limit::MAX), HighDelay::default());
        assert_eq!(HighDelay::of(200, Limit::bytes(100)).delay(0), Duration::ZERO);
    }

    #[test]
    fn extreme_figures_are_clamped() {
        assert_eq!(delay(u64::MAX, 0, 1), MAX_DELAY);
        assert_eq!(HighDelay::of(u64::MAX, Limit::bytes(0)).delay(u64::MAX), MAX_DELAY);
        assert_eq!(HighDelay::of(u64::MAX, Limit::bytes(1)).delay(1), MAX_DELAY);
        assert_eq!(HighDelay::of(0, Limit::bytes(0)), HighDelay::default());
        assert_eq!(HighDelay::of(1, Limit::bytes(0)), HighDelay::of(2, Limit::bytes(1)));
        assert_eq!(
            HighDelay::of(u64::MAX, Limit::bytes(u64::MAX - 1)).delay(u64::MAX),
            Duration::ZERO
        );
    }

    proptest! {
        #[test]
        fn more_above_or_more_charged_never_waits_less(
            high in 0u64..=u64::MAX - 1,
            usages: [u64; 2],
            charges: [u64; 2],
        ) {
            let (usage, more) = (usages[0].min(usages[1]), usages[0].max(usages[1]));
            let (bytes, more_bytes) = (charges[0].min(charges[1]), charges[0].max(charges[1]));
            let (low, above) = [usage, more].map(|usage| HighDelay::of(usage, Limit::bytes(high))).into();
            prop_assert!(low <= above);
            prop_assert!(low.delay(bytes) <= above.delay(more_bytes));
            prop_assert!(above.delay(more_bytes) <= MAX_DELAY);
        }

        #[test]
        fn the_formula_in_floating_point(
            high in 1u64 << 12..1 << 40,
            permille in 1u64..1000,
            pages in 1u64..4096,
        ) {
            let usage = high + high * permille / 1000;
            let r = (usage - high) as f64 / high as f64;
            let expected = (r * r * pages as f64).min(2.0);
            let delay = delay(usage, high, pages).as_secs_f64();
            // The fraction is cut to 2^-20, so that r may be too small by that.
            let error = 2.0 * r / (1 << 20) as f64 * pages as f64 + 1e-8;
            if delay == 0.0 {
                prop_assert!(expected <= 0.010 + error);
            } else {
                prop_assert!(delay <= expected + 1e-8 && delay >= expected - error, "{} {}", delay, expected);
            }
        }
    }
}
