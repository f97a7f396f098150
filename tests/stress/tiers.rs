//! The tiers, each in a process of its own: stocks are emptied in another way in each.

use std::env;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use percpu_memcg::PerCpuAllocator;
use percpu_memcg::this_cpu::{ThisCpu, Tier};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::lives;
use crate::processes::{end_at_a_panic, end_when_it_hangs, refuse_fences, this_binary};

/// Set in processes that are started here: which tier.
const CHILD: &str = "PERCPU_MEMCG_STRESS_CHILD";

const TIERS: [&str; 3] = ["sequences", "no sequences", "no fence"];

#[test]
fn eight_threads_keep_every_figure_exact() {
    let Ok(tier) = env::var(CHILD) else { return run_children() };
    let seed = variable("PERCPU_MEMCG_STRESS_SEED").expect("the parent set it");
    println!("{tier}: seed {seed}");
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    match (tier.as_str(), ThisCpu::tier()) {
        ("no sequences", Tier::GetCpu) | ("sequences", Tier::Rseq { .. }) => {}
        ("no fence", Tier::Rseq { .. }) => {
            // The first drain with the fence, so that the process has used it.
            drop(pcpu.root().create("first").unwrap().charge(1000).unwrap());
            pcpu.root().drain();
            if let Err(error) = refuse_fences() {
                return println!("{tier}: skipped, as a filter is refused: {error}");
            }
        }
        (_, tier_here) => {
            return println!("{tier}: skipped, as this process has the tier {tier_here:?}");
        }
    }
    drop(pcpu);
    let cpus = usable_cpus();
    if cpus.len() < 2 {
        println!("{tier}: this thread may use one CPU only, so that no thread is moved");
    }
    end_at_a_panic(seed);
    end_when_it_hangs(seed);
    println!("{tier}: {}", lives::run(seed, budget(), &cpus));
}

/// Two CPUs that this thread may use, or the only one.
fn usable_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("every thread has CPUs");
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(2).collect()
}

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().map(|number| number.parse().expect("a number"))
}

/// How long one tier is run.
fn budget() -> Duration {
    let is_full = env::var("PERCPU_MEMCG_FULL").is_ok_and(|set| !set.is_empty() && set != "0");
    let usual = if is_full { 600 } else { 2 };
    Duration::from_secs(variable("PERCPU_MEMCG_STRESS_SECONDS").unwrap_or(usual))
}

fn run_children() {
    let seed = variable("PERCPU_MEMCG_STRESS_SEED")
        .unwrap_or_else(|| RandomState::new().hash_one("seed") >> 16);
    let chosen = env::var("PERCPU_MEMCG_STRESS_TIER").ok();
    for tier in TIERS.into_iter().filter(|tier| chosen.as_ref().is_none_or(|it| it == tier)) {
        let mut child = this_binary("tiers::eight_threads_keep_every_figure_exact");
        child.env(CHILD, tier).env("PERCPU_MEMCG_STRESS_SEED", seed.to_string());
        child.env_remove("PERCPU_MEMCG_NO_RSEQ");
        if tier == "no sequences" {
            child.env("PERCPU_MEMCG_NO_RSEQ", "1");
        }
        let output = child.output().expect("this binary can be run");
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{tier}, PERCPU_MEMCG_STRESS_SEED={seed}: {}\n{errors}",
            output.status
        );
        assert!(text.contains("test result: ok. 1 passed"), "{tier} ran another test:\n{text}");
    }
}
