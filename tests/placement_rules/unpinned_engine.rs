//! Rules about lists, balance and failures that no recording depends on.

use percpu_memcg::placement::{Profile, Regions};

use crate::script::{ODD, ONE_PAGE, Run, play};

const LINUX: [Profile; 2] = [Profile::LINUX_5_10, Profile::LINUX_6_13];
const ALL: [Profile; 3] = [Profile::LINUX_5_10, Profile::LINUX_6_13, Profile::DEFAULT];

const UNIT: usize = 32 << 10;

/// The first chunk has seven pages.
const SEVEN_PAGES: Regions = Regions { static_size: 0, reserved_size: 0, dyn_size: 28_672 };

#[test]
fn reserved_areas_too_ask_for_balance_when_few_pages_are_left() {
    let regions = Regions { static_size: 24_576, reserved_size: 4096, dyn_size: 4096 };
    for profile in LINUX {
        Run::new(UNIT, regions, profile).play(
            "all empty=1 pending=0
             reserved 8@8 -> r:0 + sched",
        );
    }
}

#[test]
fn a_reserved_request_without_room_is_not_served_elsewhere() {
    for profile in ALL {
        Run::new(UNIT, ODD, profile).play(
            "reserved 6000@4 -> r:904
             b
             reserved 8@4 -> FAIL + nothing
             atomic reserved 8@4 -> FAIL + sched",
        );
    }
}

#[test]
fn reserved_request_is_ordinary_one_where_nothing_is_reserved() {
    for profile in ALL {
        Run::new(UNIT, SEVEN_PAGES, profile).play("reserved 8@8 -> 0:0");
    }
    for profile in [Profile::LINUX_5_10, Profile::DEFAULT] {
        Run::new(UNIT, SEVEN_PAGES, profile).play(
            "account reserved 8@8 -> 1:0
             c1 chunk_type=Some(Accounted)",
        );
    }
    Run::new(UNIT, SEVEN_PAGES, Profile::LINUX_6_13).play("account reserved 8@8 -> 0:0");
    // Where there is one, it serves accounted requests as well.
    for profile in ALL {
        Run::new(UNIT, ODD, profile).play("account reserved 8@8 -> r:904");
    }
}

#[test]
fn free_of_failed_population_counts_as_allocation_and_free() {
    for profile in ALL {
        Run::new(UNIT, ONE_PAGE, profile).play(
            "8@4 -> 0:0
             fail populate 1
             8192@4 -> FAIL
             all alloc=2 dealloc=1 live=1 live_bytes=8 populated=8 empty=0 chunks=2
             c1 free=32768 live=0 empty=0 pages=00000000
             8192@4 -> 1:0
             all alloc=3 dealloc=1 live=2",
        );
    }
}

#[test]
fn the_free_of_a_failed_population_keeps_pages_that_were_there() {
    for profile in ALL {
        Run::behind_first_chunk(profile).play(
            "4096@4 -> 1:0
             f 1
             fail populate 1
             8192@4 -> FAIL
             c1 pages=10000000 empty=1
             all empty=1",
        );
    }
}

#[test]
fn free_of_failed_population_does_not_look_for_pages_to_reclaim() {
    play(
        "12288@4 -> 1:0
         4@4 -> 1:12288
         32768@4 -> 2:0
         f 1
         b
         f 3 + nothing
         c1 empty=4 isolated=0
         all empty=12
         fail populate 1
         16384@4 -> FAIL + nothing
         c1 empty=4 isolated=0
         // The free of a live area does.
         4@4 -> 1:0
         f 5 + sched
         c1 isolated=1",
    );
}

#[test]
fn linux_5_10_counts_no_empty_pages_after_failed_population() {
    Run::new(UNIT, ONE_PAGE, Profile::LINUX_5_10).play(
        "fail populate 1
         8192@4 -> FAIL + create 1
         8192@4 -> 1:0 + populate 1 [0,2), sched",
    );
    // Linux 6.13 counts before it populates.
    Run::new(UNIT, ONE_PAGE, Profile::LINUX_6_13).play(
        "fail populate 1
         8192@4 -> FAIL + create 1, sched",
    );
}

#[test]
fn a_failed_creation_refuses_the_request_and_nothing_else() {
    for profile in ALL {
        Run::new(UNIT, ONE_PAGE, profile).play(
            "fail create 1
             8192@4 -> FAIL + nothing
             all alloc=0 dealloc=0 chunks=1 pending=0
             8192@4 -> 1:0",
        );
    }
}

#[test]
fn an_area_as_large_as_the_unit_comes_from_a_free_chunk() {
    for profile in ALL {
        let mut run = Run::behind_first_chunk(profile);
        run.play(
            "32768@4 -> 1:0
             32768@4 -> 2:0
             f 1",
        );
        let free = if profile == Profile::LINUX_5_10 { 14 } else { 15 };
        run.play(&format!("c1 slot={free}\nc2 slot=0\n32766@4096 -> 1:0\nc1 slot=0\nall chunks=3"));
    }
    // In larger units it may share the chunk.
    Run::new(64 << 10, ONE_PAGE, Profile::LINUX_6_13).play(
        "4096@4 -> 0:0
         4@4 -> 1:0
         c1 slot=13
         32768@4 -> 1:4
         32768@4 -> 2:0",
    );
}

#[test]
fn a_chunk_that_failed_a_search_goes_to_the_front_of_list_0() {
    // The full first chunk is on list 0 already.
    play(
        "16@4 -> 1:0
         32752@4 -> 1:16
         f 1
         c1 slot=2
         c0 slot=0 pos=0
         20@4 -> 2:0
         c1 slot=0 pos=0
         c0 slot=0 pos=1",
    );
    // From list 3 on it stays where it is.
    play(
        "32@4 -> 1:0
         32736@4 -> 1:32
         f 1
         36@4 -> 2:0
         c1 slot=3",
    );
}

#[test]
fn free_chunks_are_destroyed_from_the_back_of_their_list() {
    for profile in ALL {
        Run::behind_first_chunk(profile).play(
            "32768@4 -> 1:0
             32768@4 -> 2:0
             32768@4 -> 3:0
             32768@4 -> 4:0
             f 3
             f 1
             f 4
             f 2
             b + depopulate 3 [0,8), destroy 3, depopulate 1 [0,8), destroy 1, \
                 depopulate 4 [0,8), destroy 4
             all chunks=2
             c2 free=32768 pages=11111111",
        );
    }
}

#[test]
fn free_chunk_with_pages_outlives_the_one_that_balance_created() {
    play(
        "b
         32768@4 -> 1:0
         32768@4 -> 2:0
         f 2
         atomic 8@4 -> 2:0
         f 3
         atomic 32768@4 -> 2:0
         atomic 8@4 -> FAIL
         f 4
         // Four pages are wanted all the same, and chunk 2 has none to populate.
         b + create 3
         c3 pos=0 pages=00000000
         c2 pos=1 pages=11111111",
    );
}

#[test]
fn chunks_give_pages_back_in_turn() {
    Run::new(64 << 10, ONE_PAGE, Profile::LINUX_6_13).play(
        "32768@4 -> 1:0
         32768@4 -> 1:32768
         32768@4 -> 2:0
         32768@4 -> 2:32768
         32768@4 -> 3:0
         32768@4 -> 3:32768
         f 5
         f 6
         f 1
         f 3
         c2 slot=17 pos=0
         c1 slot=17 pos=1
         b + depopulate 2 [0,8), depopulate 1 [0,8)
         c2 slot=15 pos=0
         c1 slot=15 pos=1
         8192@4 -> 2:0",
    );
}

#[test]
fn linux_gives_pages_back_only_beside_more_than_four_others() {
    for (spare_bytes, isolated) in [(16_384, 0), (20_480, 1)] {
        play(&format!(
            "8192@4 -> 1:0
             24576@4 -> 1:8192
             {spare_bytes}@4 -> 2:0
             4096@4 -> 2:{spare_bytes}
             f 3
             f 1
             c1 empty=2 isolated={isolated}"
        ));
    }
}

#[test]
fn the_first_chunk_is_never_destroyed() {
    let whole_unit = Regions { static_size: 0, reserved_size: 0, dyn_size: UNIT };
    for profile in ALL {
        Run::new(UNIT, whole_unit, profile).play(
            "32768@4 -> 0:0
             32768@4 -> 1:0
             f 1
             f 2
             c1 pos=0
             c0 pos=1
             b + nothing
             c0 free=32768 pages=11111111
             32768@4 -> 1:0
             32768@4 -> 0:0",
        );
    }
}

#[test]
fn the_boot_chunks_are_never_depopulated() {
    for profile in ALL {
        Run::new(UNIT, SEVEN_PAGES, profile).play(
            "28672@4 -> 0:0
             32768@4 -> 1:0
             4@4 -> 2:0
             b
             f 2
             f 1 + nothing
             c0 empty=7 isolated=0
             b + nothing",
        );
        Run::new(UNIT, ODD, profile).play(
            "reserved 8@8 -> r:904
             32768@4 -> 1:0
             f 2
             b
             f 1 + nothing
             cr slot=-1 isolated=0 pages=11",
        );
    }
}
