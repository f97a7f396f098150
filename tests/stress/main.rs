//! Everything public of the cgroups at once, by eight threads on two CPUs.
//!
//! Each thread does random things with a tree that all of them share, and knows exactly what it
//! holds. After some thousand steps all threads stop, and the tree is compared with what they hold
//! together. In every other round limits are low and peaks are reset; in the rounds between, stocks are
//! used more.
//!
//! | file | what |
//! |---|---|
//! | `tiers`, `processes` | a process for each tier, and its end when it hangs |
//! | `lives` | trees, one after the other; threads and rounds |
//! | `world` | what the threads of a life share |
//! | `held` | what a thread holds, and who has to pay for it |
//! | `steps` | which step comes next, and on which CPU |
//! | `charging`, `areas`, `tree`, `limits`, `watching` | the steps |
//! | `bounded` | steps of threads that must never be refused |
//! | `check` | the comparison |
//!
//! By default each tier gets 2 seconds; with `PERCPU_MEMCG_FULL=1` in the environment, 10 minutes.
//! `PERCPU_MEMCG_STRESS_SEED` sets the seed, which a failure prints. Threads race, so that a seed
//! repeats the choices of each thread but not their order. `PERCPU_MEMCG_STRESS_SECONDS` sets the
//! time for a tier, and `PERCPU_MEMCG_STRESS_TIER` chooses one tier.

mod areas;
mod bounded;
mod charging;
mod check;
mod held;
mod limits;
mod lives;
mod processes;
mod steps;
mod tiers;
mod tree;
mod watching;
mod world;

/// A repeatable source of choices.
#[derive(Clone, Copy, Debug)]
struct Choices(u64);

impl Choices {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// True once in `times`, on average.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// No figure of this test comes near.
const ABSURD: u64 = 1 << 60;

/// A figure that the library gave.
#[track_caller]
fn sane(figure: u64) -> u64 {
    assert!(figure < ABSURD, "{figure} bytes");
    figure
}
