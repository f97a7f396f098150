//! A counter's estimate holds wherever an addition is interrupted.
//!
//! A batch on its way to the total is in no copy, so that the copy must not fill again before it has
//! arrived. One thread fills batch after batch. A signal interrupts it, sometimes on that way, and the
//! handler fills what its CPU takes. The other copy is full:
//!
//! ```text
//!   copy of CPU 0     on its way     copy of no CPU      total     estimate: two copies to both sides
//!   one batch         one batch      one batch           the rest  ──► one too few for the value
//! ```

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use percpu_memcg::{Machine, PerCpuCounter};

use crate::conditions::{on_cpu, two_cpus};
use crate::signals::{Timer, handled_by};
use crate::{KERNEL, injected};

const SIGNALS: u64 = 3000;
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn an_estimate_holds_wherever_an_addition_is_interrupted() {
    let cpus = two_cpus();
    let pcpu = injected(Machine::uniform(1).expect("a machine of one CPU"));
    for sign in [1, -1] {
        let counter = &PerCpuCounter::with_batch(&pcpu, KERNEL, 2).expect("room");
        // The copy of no CPU, where there is another CPU.
        on_cpu(cpus[cpus.len() - 1], || counter.add(sign));
        let (added, [signals, wrong]) = (&AtomicI64::new(1), &[0, 0].map(AtomicU64::new));
        let handler = |_| {
            counter.add(sign);
            // The addition that was interrupted counts or does not.
            let value = 1 + added.fetch_add(1, Relaxed);
            let estimate = counter.estimate();
            let holds = [0, 1].iter().any(|more| estimate.contains(&(sign * (value + more))));
            wrong.fetch_add(u64::from(!holds), Relaxed);
            signals.fetch_add(1, Relaxed);
        };
        let (began, count) = (Instant::now(), || signals.load(Relaxed));
        on_cpu(cpus[0], || {
            handled_by(&handler, || {
                let _timer = Timer::start();
                while count() < SIGNALS && began.elapsed() < PATIENCE {
                    for _ in 0..100 {
                        counter.add(sign);
                        added.fetch_add(1, Relaxed);
                    }
                }
            });
        });
        assert_eq!(wrong.load(Relaxed), 0, "of {} estimates", count());
        assert_eq!(counter.sum(), sign * added.load(Relaxed));
    }
}
