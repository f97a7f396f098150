//! The same test in every tier, by processes that this binary starts of itself.
//!
//! | tier | how stocks are emptied |
//! |---|---|
//! | sequences | a fence restarts every sequence |
//! | sequences, no fence from the start | under locks |
//! | no sequences | under locks |

use percpu_memcg::this_cpu::{ThisCpu, Tier};

use crate::processes::{is_child, refuse_fences_from_the_start, run, this_test};

/// Runs the body of a test here and in each other tier. The closure tells which test it is.
pub(crate) fn in_each_tier<F: Fn()>(body: F) {
    println!("tier {:?}", ThisCpu::tier());
    body();
    if is_child() {
        return;
    }
    if ThisCpu::tier() == Tier::GetCpu {
        println!("other tiers are skipped: this process has no sequences");
        return;
    }
    let mut without_sequences = this_test::<F>();
    without_sequences.env("PERCPU_MEMCG_NO_RSEQ", "1");
    run(without_sequences);
    let mut without_fence = this_test::<F>();
    refuse_fences_from_the_start(&mut without_fence);
    run(without_fence);
}
