//! What the default profile does otherwise than Linux.

use percpu_memcg::placement::{Profile, Regions};

use crate::script::Run;

const UNIT: usize = 32 << 10;
const SEVEN_PAGES: Regions = Regions { static_size: 0, reserved_size: 0, dyn_size: 28_672 };

fn default_run() -> Run {
    Run::behind_first_chunk(Profile::default())
}

#[test]
fn balance_populates_nothing_where_no_atomic_request_was_made() {
    default_run().play(
        "8@8 -> 1:0
         b + nothing
         c1 pages=10000000
         account 4096@8 -> 2:0
         b + nothing
         c2 pages=10000000
         all empty=0 pending=0",
    );
    Run::behind_first_chunk(Profile::LINUX_6_13).play("8@8 -> 1:0\nb + populate 1 [1,5)");
}

#[test]
fn an_atomic_request_makes_balance_keep_a_reserve_in_its_set() {
    // A refused one.
    default_run().play(
        "8@8 -> 1:0
         b + nothing
         atomic 4096@4 -> FAIL + sched
         b + populate 1 [1,5)
         atomic 16384@4 -> 1:8 + sched
         b + populate 1 [5,8), create 2, populate 2 [0,1)
         all empty=4",
    );
    // A served one.
    default_run().play(
        "8@8 -> 1:0
         b + nothing
         atomic 8@4 -> 1:8 + sched
         b + populate 1 [1,5)
         account 8@8 -> 2:0
         b + nothing",
    );
    default_run().play(
        "account 8@8 -> 1:0
         b + nothing
         atomic account 8@8 -> 1:8 + sched
         8@8 -> 2:0
         b + populate 1 [1,5)",
    );
}

#[test]
fn a_set_without_reserve_gives_pages_back_at_once() {
    let script = "4096@4 -> 1:0
         4096@4 -> 1:4096
         4096@4 -> 1:8192
         12288@4 -> 1:12288
         8192@4 -> 1:24576
         4096@4 -> 2:0
         4096@4 -> 2:4096
         f 7
         f 1
         f 2";
    let freed = "c2 empty=1 isolated=0\nc1 isolated=1\nb + depopulate 1 [0,2)";
    default_run().play(script).play(freed);
    // Linux keeps four more before it does.
    Run::behind_first_chunk(Profile::LINUX_6_13).play(script).play("c1 empty=2 isolated=0");
}

/// Chunk 1 is sidelined with page 0 in use; chunk 2 is full.
const SIDELINED: &str = "4096@4 -> 1:0
     28672@4 -> 1:4096
     32768@4 -> 2:0
     f 3
     f 2
     b + depopulate 1 [1,8)
     c1 slot=14 isolated=1 empty=0 pages=10000000
     32768@4 -> 2:0
     all empty=0";

#[test]
fn a_sidelined_chunk_with_populated_pages_has_its_turn() {
    default_run().play(SIDELINED).play(
        "atomic 64@4 -> FAIL + sched
         b + populate 1 [1,5)
         c1 isolated=0 slot=12 empty=4
         all empty=4
         atomic 64@4 -> 1:4096",
    );
    // In Linux it stays aside and its empty pages are not counted.
    Run::behind_first_chunk(Profile::LINUX_6_13).play(SIDELINED).play(
        "atomic 64@4 -> FAIL
         b + populate 1 [1,5)
         c1 isolated=1 slot=14 empty=4
         all empty=0",
    );
}

#[test]
fn each_set_counts_its_own_empty_pages() {
    let script = "atomic account 8@4 -> FAIL + sched
         b + create 1, populate 1 [0,4)
         all empty=11";
    // The first chunk's seven pages are of no use to accounted requests.
    Run::new(UNIT, SEVEN_PAGES, Profile::default()).play(script).play(
        "account 16384@4 -> 1:0 + sched
         all empty=7
         b + populate 1 [4,8)",
    );
    // Linux 5.10 counts them, and has the plain pass answer the failed request.
    Run::new(UNIT, SEVEN_PAGES, Profile::LINUX_5_10).play(
        "atomic account 8@4 -> FAIL + sched
         b + create 1
         c1 chunk_type=Some(Plain)
         account 16384@4 -> 2:0 + create 2, populate 2 [0,4)
         all empty=7 pending=0",
    );
}

#[test]
fn spare_pages_of_the_other_set_do_not_count_for_giving_back() {
    let script = "account 12288@4 -> 1:0
         account 8@4 -> 1:12288
         b
         f 1";
    Run::new(UNIT, SEVEN_PAGES, Profile::default()).play(script).play(
        "c1 empty=3 isolated=0
         all empty=10 pending=0
         account 4096@4 -> 1:0
         account 32768@4 -> 2:0
         b + nothing
         f 4 + nothing
         f 3 + sched
         c1 isolated=1
         b + depopulate 1 [0,3)",
    );
}
