//! Sequences with every place worked out; chunk 1 is a fresh 32 KiB chunk.

use std::fmt::Write;

use percpu_memcg::placement::Profile;

use crate::script::{ODD, Run, play};

#[test]
fn small_areas_fill_the_holes_that_alignment_leaves() {
    play(
        "8@8 -> 1:0 + create 1, populate 1 [0,1)
         4@4 -> 1:8 + nothing
         100@64 -> 1:64
         16@16 -> 1:16
         8@8 -> 1:32
         3@1 -> 1:12
         24@8 -> 1:40
         4096@4096 -> 1:4096 + populate 1 [1,2)
         64@64 -> 1:192
         c1.0 contig=960@64 scan=7@41
         c1 contig=6144@2048 slot=12 first_free=41
         b + populate 1 [2,6)",
    );
}

#[test]
fn scan_hint_lets_a_search_start_behind_holes_too_small() {
    play(
        "64@64 -> 1:0
         64@64 -> 1:64
         64@64 -> 1:128
         64@64 -> 1:192
         f 2
         128@8 -> 1:256
         32@8 -> 1:64
         32@8 -> 1:96
         f 1
         f 3
         c1.0 scan=16@32
         96@4 -> 1:384
         48@16 -> 1:0",
    );
}

#[test]
fn scan_hint_that_is_consumed_forgets_the_larger_hole_behind_it() {
    play(
        "80@4 -> 1:0
         48@4 -> 1:80
         16@4 -> 1:128
         16@4 -> 1:144
         f 2
         80@4 -> 1:160
         f 1
         48@4 -> 1:0
         f 4
         c1.0 scan=4@36
         32@4 -> 1:240          // [48,128) is free, but nothing knows
         16@4 -> 1:48
         80@4 -> 1:272",
    );
}

#[test]
fn edges_of_blocks_join_across_the_page_border() {
    play(
        "3000@8 -> 1:0
         3000@8 -> 1:3000 + populate 1 [1,2)
         1000@8 -> 1:6000
         3000@8 -> 1:7000 + populate 1 [2,3)
         f 2
         2000@8 -> 1:3000
         3000@8 -> 1:10000 + populate 1 [3,4)
         c1 contig=4942@3250 scan=250@1250 pages=11110000",
    );
}

#[test]
fn a_chunk_is_judged_by_its_contig_run_alone() {
    play(
        "4100@4 -> 1:0
         5000@4 -> 1:4100
         7284@4 -> 1:9100
         4096@4096 -> 1:16384
         12288@4 -> 1:20480
         f 2
         f 4
         c1 contig=1250@1025 slot=10
         4096@4096 -> 2:0 + create 2, populate 2 [0,1)
         4096@4 -> 1:4100",
    );
}

/// Sixteen areas of 2048 bytes fill a chunk of 32 KiB.
fn sixteen_halves() -> String {
    (0..16).fold(String::new(), |mut script, index| {
        writeln!(script, "2048@8 -> 1:{}", index * 2048).expect("strings grow");
        script
    })
}

#[test]
fn linux_misses_room_that_a_free_inside_a_later_block_made() {
    for profile in [Profile::LINUX_6_13, Profile::LINUX_5_10] {
        Run::behind_first_chunk(profile).play(&sixteen_halves()).play(
            "f 4
             c1 slot=0 contig=0 free=2048
             2048@8 -> 2:0
             f 1
             c1 contig=512@0
             2048@8 -> 1:0
             f 3                // the block is free as a whole: the chunk looks anew
             2048@8 -> 1:4096",
        );
    }
}

#[test]
fn default_profile_sees_room_that_free_inside_later_block_made() {
    Run::behind_first_chunk(Profile::default()).play(&sixteen_halves()).play(
        "f 4
         c1 contig=512@1536
         2048@8 -> 1:6144
         all chunks=2",
    );
}

#[test]
fn of_equal_runs_the_better_aligned_one_is_kept() {
    play(
        "96@4 -> 1:0
         1024@4 -> 1:96
         928@4 -> 1:1120
         1024@4 -> 1:2048
         1024@4 -> 1:3072
         28672@4 -> 1:4096
         f 2
         c1 contig=256@24
         c1.0 contig=256@24
         f 4
         c1 contig=256@512 scan=0
         c1.0 contig=256@512 scan=0
         1024@1024 -> 1:2048    // passes the hole at 24 and learns of it anew
         c1 contig=256@24
         1024@4 -> 1:96",
    );
}

#[test]
fn atomic_requests_use_populated_pages_balance_prepares_more() {
    play(
        "64@64 -> 1:0 + create 1, populate 1 [0,1)
         atomic 4096@4 -> FAIL
         b + populate 1 [1,5)
         atomic 4096@4 -> 1:64
         atomic 4096@4096 -> 1:8192
         atomic 12288@4 -> FAIL
         // Four are wanted and chunk 1 offers three; beside the new chunk none is wanted.
         b + populate 1 [5,8), create 2
         atomic 12288@4 -> 1:12288
         atomic 100@4 -> 1:4160",
    );
}

#[test]
fn a_failed_search_sidelines_a_chunk_with_little_room() {
    play(
        "16@4 -> 1:0
         8@4 -> 1:16
         8@4 -> 1:24
         32736@4 -> 1:32
         f 1
         c1 slot=2
         20@4 -> 2:0 + create 2, populate 2 [0,1)
         c1 slot=0
         f 2
         c1 slot=0 contig=6@0   // the hint says list 2 as before, so it stays aside
         24@4 -> 2:20
         f 3
         c1 slot=3 pos=0
         24@4 -> 1:0",
    );
}

#[test]
fn chunks_with_less_room_go_to_the_back_of_their_list() {
    play(
        "32768@4 -> 1:0
         32768@4 -> 2:0
         32768@4 -> 3:0
         f 1
         f 2
         c2 slot=15 pos=0
         c1 slot=15 pos=1
         100@4 -> 2:0
         20000@4 -> 2:100
         20000@4 -> 1:0
         c2 slot=11 pos=0
         c1 slot=11 pos=1
         5000@4 -> 2:20100
         f 5
         13000@4 -> 2:100
         f 3
         b + nothing
         c3 slot=15 free=32768
         all empty=12",
    );
}

#[test]
fn a_chunk_with_a_quarter_of_its_pages_empty_gives_them_back() {
    let eight_pages = (0..8).map(|page| format!("4096@4 -> 1:{}\n", page * 4096));
    let script = eight_pages.collect::<String>()
        + "32768@4 -> 2:0
         f 9 + nothing
         all empty=8
         f 8 + nothing
         f 7
         c1 isolated=1 slot=16 empty=2
         all empty=8
         b + depopulate 1 [6,8)
         c1 slot=14 isolated=1 empty=0
         2048@4 -> 1:24576 + populate 1 [6,7)
         c1 isolated=0
         f 10
         b + nothing
         f 6 + sched
         c1 isolated=1 empty=2
         b + depopulate 1 [5,7)";
    Run::behind_first_chunk(Profile::LINUX_6_13).play(&script);
}

#[test]
fn boot_chunks_count_offsets_from_the_page_they_begin_in() {
    Run::new(32 << 10, ODD, Profile::LINUX_6_13).play(
        "cr slot=-1 free=6000 first_free=226 pages=11
         c0 slot=11 free=9480 first_free=702 pages=111
         all empty=2
         reserved 8@8 -> r:904
         reserved 64@64 -> r:960
         100@8 -> 0:2808
         4096@4096 -> 0:4096
         4000@4 -> 0:8192
         reserved 8@8 -> r:912",
    );
}
