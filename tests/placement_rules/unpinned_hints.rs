//! Rules about hints that hardly ever decide a place, so that no recording depends on them.
//!
//! Most are about sizes set to 0 whose starts stay behind. Such a start is never used as a place,
//! but later comparisons read it, and the statistics show it.

use percpu_memcg::placement::Profile;

use crate::script::{ODD, Run, play};

#[test]
fn a_block_that_is_full_keeps_the_start_of_its_last_contig_run() {
    play(
        "100@4 -> 1:0
         c1.0 contig=999@25
         3996@4 -> 1:100
         c1.0 contig=0@25 first_free=1024 left=0 right=0",
    );
}

#[test]
fn a_block_refreshed_from_its_scan_run_keeps_that_runs_start() {
    play(
        "64@4 -> 1:0
         64@4 -> 1:64
         64@4 -> 1:128
         f 2
         c1.0 contig=976@48 scan=16@16
         3904@4 -> 1:192
         c1.0 contig=16@16 scan=0@16",
    );
}

#[test]
fn a_run_before_the_contig_run_clears_the_scan_hints_size() {
    play(
        "256@4 -> 1:0
         64@4 -> 1:256
         64@4 -> 1:320
         128@4 -> 1:384
         3584@4 -> 1:512
         28672@4 -> 1:4096      // the chunk is full, so that its hints are those of block 0
         f 4
         f 2
         c1.0 contig=32@96 scan=16@64
         c1 contig=32@96 scan=16@64
         f 1
         c1.0 contig=80@0 scan=0@64
         c1 contig=80@0 scan=0@64",
    );
}

#[test]
fn a_run_between_contig_and_scan_run_clears_the_hints_size() {
    play(
        "64@4 -> 1:0
         64@4 -> 1:64
         128@4 -> 1:128
         128@4 -> 1:256
         64@4 -> 1:384
         64@4 -> 1:448
         3584@4 -> 1:512
         f 2
         f 6
         c1.0 contig=16@16 scan=16@112
         f 4
         c1.0 contig=32@64 scan=0@112",
    );
}

#[test]
fn block_in_middle_of_area_keeps_first_free_and_starts() {
    play(
        "4096@4 -> 1:0
         64@4 -> 1:4096
         64@4 -> 1:4160
         64@4 -> 1:4224
         f 3
         f 4
         f 2
         c1.1 contig=1024@0 scan=0@16
         f 1
         12288@4 -> 1:0
         c1.1 contig=0@0 scan=0@16 first_free=0 left=0 right=0
         f 5
         c1.1 contig=1024@0 scan=0@16 first_free=0 left=1024 right=1024",
    );
}

#[test]
fn the_last_block_of_an_area_knows_that_nothing_is_free() {
    play(
        "12288@4 -> 1:0
         c1.0 contig=0 first_free=1024
         c1.1 contig=0 first_free=0
         c1.2 contig=0 first_free=1024 left=0 right=0
         // Not at its end: refreshed.
         6144@4 -> 1:12288
         c1.4 contig=512@512 first_free=512 left=0 right=512",
    );
}

#[test]
fn the_chunks_scan_hint_survives_a_full_refresh() {
    Run::new(32 << 10, ODD, Profile::LINUX_6_13).play(
        "reserved 576@4 -> r:904
         reserved 1600@4 -> r:1480
         reserved 256@4 -> r:3080
         f 2
         reserved 1024@4 -> r:1480
         f 1
         reserved 3328@4 -> r:3336
         cr contig=144@226 scan=144@626
         // Across a page border: every region is looked at anew, and all of them lie behind.
         f 5
         cr contig=892@834 scan=144@626",
    );
}

#[test]
fn full_refresh_of_the_chunk_compares_with_the_old_contig_start() {
    Run::new(32 << 10, ODD, Profile::LINUX_6_13).play(
        "8192@256 -> 0:2816
         c0 contig=320@2752
         f 1
         c0 contig=2370@702 scan=0
         4096@1024 -> 0:3072
         264@4 -> 0:2808",
    );
}

#[test]
fn a_search_may_end_a_block_behind_the_hint_it_began_at() {
    play(
        "4@4 -> 1:0
         4@4 -> 1:4
         3592@4 -> 1:8
         f 2
         c1.0 scan=1@1
         f 1
         4@4 -> 1:0
         c1.0 contig=124@900 first_free=1
         8@4 -> 1:3600",
    );
    // The padding counts too.
    play(
        "4@4 -> 1:0
         8@4096 -> 1:4096
         8@2048 -> 1:2048",
    );
}

#[test]
fn a_search_tells_the_block_of_the_run_it_passed() {
    Run::new(32 << 10, ODD, Profile::LINUX_6_13).play(
        "256@1024 -> 0:3072
         64@32 -> 0:2816        // aligned: two granules stay free in front
         c0.0 contig=192@832 scan=0
         64@4 -> 0:2880
         c0.0 contig=192@832 scan=2@702",
    );
}

#[test]
fn an_atomic_search_goes_on_behind_pages_that_are_missing() {
    let mut run = Run::behind_first_chunk(Profile::LINUX_6_13);
    run.play(
        "4096@4 -> 1:0
         8192@4 -> 1:4096
         16@4 -> 1:12288
         32768@4 -> 2:0
         f 4
         f 2
         c1 isolated=1
         b + depopulate 1 [1,3)
         c1 pages=10010000
         4@4 -> 1:4096 + populate 1 [1,2)
         c1 pages=11010000 isolated=0
         // Room from 4100 on, but page 2 is missing; page 3 has room behind the 16 bytes.
         atomic 4094@4 -> 2:0
         atomic 2000@4 -> 1:4100
         atomic 2096@4 -> 1:12304",
    );
}
