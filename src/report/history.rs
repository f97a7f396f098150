//! The last minute of a tree: a ring of samples.
//!
//! Who takes the samples is the user's choice: a loop that there is already calls [`History::sample`], or
//! [`History::start`] starts a thread. A sample holds few cgroups, so that a ring is small however large the
//! tree is.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::num::NonZeroUsize;
use std::sync::{self, Arc, Condvar, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use crate::memcg::{Memcg, MemcgSnapshot};
use crate::sys::forks::{self, ProcessMark};
use crate::sys::locks::{Mutex, MutexGuard};

/// The figures of a tree in the last minute, and what its peak was made of.
///
/// A sample holds the cgroup and, of each cgroup down to a depth, the children that use most. What a ring
/// takes is bounded by that: with the defaults, 60 samples of at most 111 cgroups.
///
/// Cost of a sample: that of [`Memcg::snapshot`]. Charges are not slower.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::report::History;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let history = History::of(&pcpu.root());
/// let tenant = pcpu.root().create("tenant")?;
/// let held = tenant.charge(3000)?;
/// history.sample();
/// drop(held);
/// history.sample();
///
/// let peak = history.peak().expect("two samples");
/// assert_eq!((peak.cgroups[1].path.as_str(), peak.cgroups[1].current), ("/tenant", 3000));
/// println!("{:#}", history.report());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct History {
    memcg: Memcg,
    depth: usize,
    top: usize,
    samples: NonZeroUsize,
    ring: Mutex<VecDeque<Arc<Sample>>>,
}

/// The figures of a tree at one moment.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::report::{History, Sample};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let history = History::of(&pcpu.root());
/// let _held = pcpu.root().create("tenant")?.charge(1000)?;
/// history.sample();
/// let sample: &Sample = &history.samples()[0];
/// assert_eq!(sample.cgroups.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Sample {
    /// When it was taken, by the system's clock. The feature `serde` writes `unix_ms`.
    #[cfg_attr(feature = "serde", serde(rename = "unix_ms", serialize_with = "unix_ms"))]
    pub at: SystemTime,
    /// The highest usage so far. When it is higher than in the sample before, usage was so high at some
    /// moment in between.
    pub peak: u64,
    /// The cgroup and some of its descendants, in pre-order: of the children of each, those that use most
    /// first.
    pub cgroups: Vec<SampledMemcg>,
}

/// One cgroup in a [`Sample`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::report::{History, SampledMemcg};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let history = History::of(&pcpu.root());
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.charge(1000)?.labelled("cache");
/// history.sample();
/// let tenant: &SampledMemcg = &history.samples()[0].cgroups[1];
/// assert_eq!((tenant.own, tenant.labels["cache"]), (1000, 1000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SampledMemcg {
    /// The path from the root.
    pub path: String,
    /// How many levels it is below the first cgroup of the sample.
    pub depth: usize,
    /// Bytes in use.
    pub current: u64,
    /// The part of `current` that is not of its children.
    pub own: u64,
    /// The part of `current` that is per-CPU areas.
    pub percpu: u64,
    /// The part of `current` that has a label, by label.
    pub labels: BTreeMap<Cow<'static, str>, u64>,
    /// The number of its children that the sample leaves out.
    pub left_out: usize,
    /// Bytes in use by these children.
    pub left_out_current: u64,
}

impl History {
    /// An empty ring for a cgroup and its descendants: 60 samples, 2 levels, and 10 children of each cgroup.
    pub fn of(memcg: &Memcg) -> Self {
        History {
            memcg: memcg.clone(),
            depth: 2,
            top: 10,
            samples: const { NonZeroUsize::new(60).unwrap() },
            ring: Mutex::default(),
        }
    }

    /// Leaves out what is more than so many levels below the cgroup.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        History { depth, ..self }
    }

    /// Holds of each cgroup's children only so many, those that use most.
    #[must_use]
    pub fn top(self, top: usize) -> Self {
        History { top, ..self }
    }

    /// Holds so many samples, the newest.
    #[must_use]
    pub fn length(self, samples: NonZeroUsize) -> Self {
        History { samples, ..self }
    }

    /// Takes a sample. The oldest one leaves when there are more than the ring holds.
    pub fn sample(&self) {
        let sample = Arc::new(Sample::of(&self.memcg.snapshot(), self.depth, self.top));
        let mut ring = self.ring();
        ring.push_back(sample);
        let oldest = (ring.len() > self.samples.get()).then(|| ring.pop_front());
        drop(ring);
        drop(oldest);
    }

    /// Starts a thread that takes a sample at once, and then one in each period, until the handle is dropped.
    ///
    /// # Errors
    ///
    /// When the system has no thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use percpu_memcg::report::History;
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let history = Arc::new(History::of(&pcpu.root()));
    /// let sampler = History::start(&history, Duration::from_secs(1))?;
    /// # drop(sampler);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn start(history: &Arc<Self>, period: Duration) -> io::Result<Sampler> {
        let (history, stop) = (Arc::clone(history), Arc::new(Stop::default()));
        let thread = thread::Builder::new().name("memcg-history".into()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.is_set() {
                    forks::between(|| history.sample());
                    stop.wait(period);
                }
            }
        })?;
        Ok(Sampler { stop, thread: Some(thread), process: ProcessMark::of_this() })
    }

    /// The samples, the oldest first.
    pub fn samples(&self) -> Vec<Arc<Sample>> {
        // The list is the caller's, and not allocated under the lock.
        let mut samples = Vec::new();
        loop {
            let ring = self.ring();
            let count = ring.len();
            if count <= samples.capacity() {
                samples.extend(ring.iter().map(Arc::clone));
                return samples;
            }
            drop(ring);
            samples.reserve_exact(count);
        }
    }

    /// The sample in which the cgroup used most, of equals the newest; `None` when there is none.
    pub fn peak(&self) -> Option<Arc<Sample>> {
        // Of equals, the last.
        self.samples().into_iter().max_by_key(|sample| sample.current())
    }

    /// The newest sample in which the cgroup at `path` used most; `None` when no sample has it.
    pub fn peak_of(&self, path: &str) -> Option<Arc<Sample>> {
        let with = |sample: Arc<Sample>| Some((sample.find(path)?.current, sample));
        self.samples()
            .into_iter()
            .filter_map(with)
            .max_by_key(|(current, _)| *current)
            .map(|most| most.1)
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Arc<Sample>>> {
        self.ring.lock()
    }
}

/// Without the samples: what formats them may not run under the lock of the ring.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let History { memcg, depth, top, samples, ring: _ } = self;
        let taken = self.ring().len();
        f.debug_struct("History")
            .field("memcg", memcg)
            .field("depth", depth)
            .field("top", top)
            .field("length", samples)
            .field("taken", &taken)
            .finish()
    }
}

impl Sample {
    fn of(snapshot: &MemcgSnapshot, depth: usize, top: usize) -> Self {
        let all = &snapshot.cgroups;
        let children = snapshot.children_by_usage();
        let mut cgroups = Vec::new();
        let mut next = vec![0];
        while let Some(index) = next.pop() {
            let Some(stats) = all.get(index) else { continue };
            let shown = if stats.depth < depth { top.min(children[index].len()) } else { 0 };
            let (shown, left_out) = children[index].split_at(shown);
            let sum = |children: &[usize]| {
                children.iter().fold(0, |sum: u64, child| sum.saturating_add(all[*child].current))
            };
            cgroups.push(SampledMemcg {
                path: stats.path.clone(),
                depth: stats.depth,
                current: stats.current,
                // Figures of different moments may be together more than there is.
                own: stats.current.saturating_sub(sum(&children[index])),
                percpu: stats.percpu,
                labels: stats.labels.clone(),
                left_out: left_out.len(),
                left_out_current: sum(left_out),
            });
            next.extend(shown.iter().rev());
        }
        let peak = all.first().map_or(0, |first| first.peak);
        Sample { at: SystemTime::now(), peak, cgroups }
    }

    /// Bytes in use by the first cgroup.
    pub fn current(&self) -> u64 {
        self.cgroups.first().map_or(0, |first| first.current)
    }

    /// The cgroup at a path, if the sample has it.
    pub fn find(&self, path: &str) -> Option<&SampledMemcg> {
        self.cgroups.iter().find(|cgroup| cgroup.path == path)
    }
}

/// The field `peak` is the sample of [`peak`](History::peak), and null when there is none; `samples` are all
/// of them, the oldest first.
#[cfg(feature = "serde")]
impl serde::Serialize for History {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let samples = self.samples();
        let peak = samples.iter().max_by_key(|sample| sample.current());
        let mut fields = serializer.serialize_struct("History", 2)?;
        fields.serialize_field("peak", &peak.map(|peak| &**peak))?;
        fields.serialize_field(
            "samples",
            &samples.iter().map(|sample| &**sample).collect::<Vec<_>>(),
        )?;
        fields.end()
    }
}

/// Milliseconds since 1970.
#[cfg(feature = "serde")]
fn unix_ms<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(since.as_millis() as u64)
}

/// Whether a thread is to end.
#[derive(Debug, Default)]
struct Stop {
    is_set: sync::Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn is_set(&self) -> bool {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is set, at most so long.
    fn wait(&self, most: Duration) {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let _woken = self.changed.wait_timeout_while(is_set, most, |is_set| !*is_set);
    }

    fn set(&self) {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// A thread that takes samples for a [`History`]. It ends when this is dropped.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::report::{History, Sampler};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let history = Arc::new(History::of(&pcpu.root()));
/// let sampler: Sampler = History::start(&history, Duration::from_millis(1))?;
/// while history.samples().len() < 3 {
///     std::thread::yield_now();
/// }
/// drop(sampler);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the thread ends when this is dropped"]
pub struct Sampler {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread.
    process: ProcessMark,
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if !self.process.is_of_this() {
            // A forked child has no such thread.
            mem::forget(self.thread.take());
            return;
        }
        self.stop.set();
        // A sample does not panic; and a drop must not.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcg::Charge;
    use crate::percpu::PerCpuAllocator;
    use crate::sys::text::Bytes;

    fn charge(root: &Memcg, path: &str, bytes: u64) -> Charge {
        root.find(path).unwrap().charge(bytes).unwrap()
    }

    fn root() -> Memcg {
        let root = PerCpuAllocator::new().unwrap().root();
        for name in ["a", "b", "c"] {
            let tenant = root.create(name).unwrap();
            tenant.create("x").unwrap().create("deep").unwrap();
            tenant.create("y").unwrap();
        }
        root
    }

    #[test]
    fn a_ring_holds_the_newest_samples() {
        let root = root();
        let history = History::of(&root).length(NonZeroUsize::new(3).unwrap());
        assert!(history.peak().is_none());
        assert_eq!(history.report().to_string(), "no samples\n");
        let statistics = root.current();
        for bytes in [9000, 1000, 3000, 2000] {
            let _held = charge(&root, "a", bytes);
            history.sample();
        }
        let samples: Vec<u64> =
            history.samples().iter().map(|sample| sample.current() - statistics).collect();
        assert_eq!(samples, [1000, 3000, 2000]);
        assert_eq!(history.peak().unwrap().current(), 3000 + statistics);
    }

    #[test]
    fn the_peak_of_one_cgroup_is_another_sample_than_that_of_all() {
        let root = root();
        let history = History::of(&root);
        for (path, bytes) in [("a/x", 100_000), ("b/y", 200_000)] {
            let _held = charge(&root, path, bytes);
            history.sample();
        }
        assert!(history.peak().unwrap().find("/b/y").unwrap().current >= 200_000);
        let of_a = history.peak_of("/a").unwrap();
        assert!(of_a.find("/a/x").unwrap().current >= 100_000);
        assert!(history.peak_of("/nobody").is_none());
    }

    #[test]
    fn a_sample_is_bounded_and_its_parts_are_the_whole() {
        let root = root();
        let _held =
            [charge(&root, "a/x/deep", 10), charge(&root, "b", 2000), charge(&root, "c", 7)];
        for (depth, top, count) in [(0, 9, 1), (1, 2, 3), (2, 1, 3), (2, 10, 10), (9, 10, 13)] {
            let history = History::of(&root).depth(depth).top(top);
            history.sample();
            let sample = &history.samples()[0];
            assert_eq!(sample.cgroups.len(), count, "{depth} {top}");
            for (at, cgroup) in sample.cgroups.iter().enumerate() {
                let below =
                    sample.cgroups[at + 1..].iter().take_while(|below| below.depth > cgroup.depth);
                let children = below.filter(|below| below.depth == cgroup.depth + 1);
                let sum: u64 = children.map(|child| child.current).sum();
                assert_eq!(cgroup.own + sum + cgroup.left_out_current, cgroup.current);
            }
            assert_eq!(sample.cgroups.first().unwrap().path, "/");
            assert!(count < 3 || sample.cgroups[1].path == "/b", "the largest first");
        }
    }

    #[test]
    fn the_report_has_a_line_for_what_is_left_out() {
        let root = root();
        let held = [charge(&root, "a", 100_000), charge(&root, "b", 5000).labelled("rows")];
        let history = History::of(&root).depth(1).top(2);
        history.sample();
        let rest = format!("{:#}", Bytes(root.find("c").unwrap().current()));
        drop(held);
        root.find("b/x/deep").unwrap().remove().unwrap();
        history.sample();
        let text = format!("{:#}", history.report());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("peak of / in the last 0 s: "), "{text}");
        assert!(
            lines[3].starts_with("  a ") && lines[3].ends_with("-97.7 KiB  … 2 below"),
            "{text}"
        );
        assert!(lines[4].ends_with("rows 4.9 KiB  … 2 below"), "{text}");
        assert!(lines[5].starts_with("  … 1 more ") && lines[5].contains(&rest), "{text}");
        assert_eq!(lines.len(), 6);
    }
}
