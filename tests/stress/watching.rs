//! Steps that read.

use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use percpu_memcg::cgroup::MemcgEvents;

use crate::sane;
use crate::steps::Hand;

/// No count is lower than it was.
#[track_caller]
pub(crate) fn assert_no_less(before: &MemcgEvents, now: &MemcgEvents) {
    let all = |events: &MemcgEvents| {
        [events.low, events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill]
    };
    let is_no_less = all(before).iter().zip(all(now)).all(|(before, now)| *before <= now);
    assert!(
        is_no_less && all(now).iter().all(|count| sane(*count) == *count),
        "{before:?} {now:?}"
    );
}

impl Hand {
    pub(crate) fn read(&mut self) {
        let memcg = self.cgroup();
        match self.choices.below(8) {
            0 => {
                let current = sane(memcg.current());
                assert!(sane(memcg.peak()) >= current);
            }
            1 => {
                let usage = memcg.stat();
                let figures = [usage.percpu, usage.charged, usage.cached];
                assert!(figures.iter().all(|bytes| sane(*bytes) == *bytes));
            }
            2 => {
                for cgroup in memcg.snapshot().cgroups {
                    let figures =
                        [cgroup.current, cgroup.peak, cgroup.percpu, cgroup.charged, cgroup.cached];
                    assert!(figures.iter().all(|bytes| sane(*bytes) == *bytes));
                    assert!(cgroup.peak >= cgroup.current, "{cgroup:?}");
                }
            }
            3 => {
                sane(memcg.cached());
                assert!(memcg.nr_descendants() < 1000 && memcg.nr_dying_descendants() < 1 << 20);
                assert!(memcg.nr_threads() <= crate::lives::THREADS);
            }
            _ => self.read_peak(),
        }
    }

    /// A peak of a reader is never lower than a usage that was read since its reset.
    fn read_peak(&mut self) {
        if self.world.is_calm.load(Relaxed) {
            return self.readers.clear();
        }
        if self.readers.len() < 3 {
            let memcg = self.cgroup();
            let reader = memcg.peak_reader();
            self.readers.push((memcg, reader, 0));
        }
        let nth = self.choices.below(self.readers.len());
        let (memcg, reader, most) = &mut self.readers[nth];
        match self.choices.below(8) {
            0 => {
                *most = 0;
                reader.reset();
            }
            1 => drop(self.readers.swap_remove(nth)),
            _ => {
                *most = (*most).max(memcg.current());
                assert!(sane(reader.read()) >= *most, "{memcg:?}");
                assert!(memcg.peak() >= *most, "{memcg:?}");
            }
        }
    }

    pub(crate) fn watch(&mut self) {
        if self.watches.len() < 3 {
            let watch = self.cgroup().watch_events();
            let seen = watch.current();
            self.watches.push((watch, seen));
        }
        let nth = self.choices.below(self.watches.len());
        let (watch, seen) = &mut self.watches[nth];
        let now = match self.choices.below(4) {
            0 => match watch.poll_changed(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(now) => now,
                Poll::Pending => *seen,
            },
            1 => watch.wait_timeout(Duration::from_micros(50)).unwrap_or(*seen),
            2 => watch.current(),
            _ => return drop(self.watches.swap_remove(nth)),
        };
        assert_no_less(seen, &now);
        *seen = now;
    }
}
