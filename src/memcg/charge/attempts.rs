//! Bounds on what asks hooks and callbacks again and again, whatever they answer.
//!
//! What a callback answers is not trusted. An attempt counts as a success if less is left to do than
//! after any attempt before it. There may be so many failures in a row, each followed by a longer
//! pause, and so many attempts in all.

use std::thread;
use std::time::{Duration, Instant};

use crate::memcg::node::turn::PATIENCE;

/// How often reclaim is repeated without a success: the kernel's `MAX_RECLAIM_RETRIES`.
pub(crate) const RETRIES: u32 = 16;

/// Attempts in all. Callbacks that free little each time do not keep a caller for longer.
const IN_ALL: u32 = 1024;

/// The pause after the first failure. The next ones are twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause: 16 failures take some 1.3 seconds.
const LONGEST_PAUSE: Duration = Duration::from_millis(128);

/// Attempts to bring a number of bytes down.
#[derive(Debug)]
pub(crate) struct Attempts {
    /// The fewest bytes that were left to do after an attempt.
    least: u64,
    failures: u32,
    left: u32,
    /// Time for callbacks that asked for some.
    patience: Duration,
}

impl Attempts {
    /// Before the first attempt, with so many bytes to do.
    pub(crate) fn new(to_do: u64) -> Self {
        Attempts { least: to_do, failures: 0, left: IN_ALL, patience: PATIENCE }
    }

    /// Whether there may be another attempt. Waits after a failure, until `to_do` returns 0 at most.
    pub(crate) fn may_go_on(&mut self, to_do: impl Fn() -> u64) -> bool {
        let now = to_do();
        self.left -= 1;
        if now < self.least {
            (self.least, self.failures) = (now, 0);
        } else {
            self.failures += 1;
            let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(RETRIES));
            wait_until(|| to_do() == 0, pause.min(LONGEST_PAUSE));
        }
        self.failures < RETRIES && self.left > 0
    }

    /// Gives a callback the time that it asked for, as far as the caller has patience, until `to_do`
    /// returns 0.
    pub(crate) fn give_time(&mut self, time: Duration, to_do: impl Fn() -> u64) {
        let (time, since) = (time.min(self.patience), Instant::now());
        wait_until(|| to_do() == 0, time);
        self.patience = self.patience.saturating_sub(since.elapsed());
    }
}

/// Waits until `is_enough` returns true, for `time` at most.
///
/// It looks again and again, because an uncharge must not look for threads that wait.
pub(crate) fn wait_until(is_enough: impl Fn() -> bool, time: Duration) {
    let (since, mut pause) = (Instant::now(), FIRST_PAUSE);
    while !is_enough() {
        let Some(left) = time.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
            return;
        };
        thread::sleep(pause.min(left));
        pause = (2 * pause).min(LONGEST_PAUSE / 8);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn failures_in_a_row_are_bounded_and_take_time() {
        let (mut attempts, mut count, since) = (Attempts::new(100), 1, Instant::now());
        while attempts.may_go_on(|| 100) {
            count += 1;
        }
        assert_eq!(count, RETRIES);
        assert!(since.elapsed() > Duration::from_secs(1), "{:?}", since.elapsed());
    }

    #[test]
    fn small_steps_are_bounded_too() {
        let (mut attempts, mut left) = (Attempts::new(1 << 40), 1 << 40);
        let mut count = 1;
        while attempts.may_go_on(|| left) {
            left -= 1;
            count += 1;
        }
        assert!(count <= IN_ALL, "{count}");
    }

    #[test]
    fn going_up_and_down_is_no_success() {
        let (mut attempts, mut count) = (Attempts::new(100), 1);
        while attempts.may_go_on(|| 100 + count % 2) {
            count += 1;
        }
        assert_eq!(count, u64::from(RETRIES));
    }

    #[test]
    fn patience_is_for_all_callbacks_together() {
        let mut attempts = Attempts { patience: Duration::from_millis(50), ..Attempts::new(1) };
        let since = Instant::now();
        (0..10).for_each(|_| attempts.give_time(Duration::from_secs(100), || 1));
        let waited = since.elapsed();
        assert!(waited >= Duration::from_millis(50) && waited < Duration::from_secs(5));
    }

    #[test]
    fn a_wait_ends_when_there_is_enough() {
        let looks = Cell::new(0);
        let is_enough = || {
            looks.set(looks.get() + 1);
            looks.get() == 3
        };
        wait_until(is_enough, Duration::from_secs(1000));
        assert_eq!(looks.get(), 3);
    }
}
