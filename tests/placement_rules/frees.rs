//! Frees of what is not live: an error, and no change at all.

use percpu_memcg::placement::{ChunkName, Place, Profile, Regions, Simulator};

use crate::script::{ODD, Run};

const ALL: [Profile; 3] = [Profile::LINUX_5_10, Profile::LINUX_6_13, Profile::DEFAULT];

const FIRST: ChunkName = ChunkName::Numbered(0);
const CREATED: ChunkName = ChunkName::Numbered(1);

/// In a first chunk of pages 0 to 2: one area of 100 bytes, one freed, one live behind it; in a
/// created chunk one area across a page border; a reserved area.
fn furnished(profile: Profile) -> Run {
    let mut run = Run::new(32 << 10, ODD, profile);
    run.play(
        "100@8 -> 0:2808
         64@64 -> 0:2944
         64@64 -> 0:3008
         f 2
         30000@4 -> 1:0
         reserved 64@64 -> r:960
         b",
    );
    run
}

#[track_caller]
fn refused(simulator: &mut Simulator, chunk: ChunkName, offset: usize) {
    let before = (simulator.placement().stats(), simulator.placement().chunks());
    let outcome = simulator.free(Place { chunk, offset, size: 64 });
    let error = outcome.expect_err("nothing live starts there");
    assert_eq!(error.offset, offset);
    assert_eq!(simulator.take_events(), [], "{chunk}:{offset}");
    let after = (simulator.placement().stats(), simulator.placement().chunks());
    assert_eq!(after, before, "{chunk}:{offset}");
}

#[test]
fn frees_of_what_is_not_live_change_nothing() {
    for profile in ALL {
        let simulator = &mut furnished(profile).simulator;
        let inside_an_area = [(FIRST, 2812), (FIRST, 2904), (CREATED, 4096), (CREATED, 29_996)];
        let freed_or_never_given = [(FIRST, 2944), (FIRST, 2912), (FIRST, 8192), (CREATED, 30_000)];
        let not_on_a_granule = [(FIRST, 2809), (FIRST, 2810), (FIRST, 2811), (CREATED, 1)];
        let behind_the_chunk = [(FIRST, 3 * 4096), (FIRST, 1 << 40), (CREATED, 32_768)];
        let at_the_end_of_addresses = [usize::MAX, usize::MAX - 3, 1 << 63].map(|at| (FIRST, at));
        // What lies in the first chunk's pages, but in other regions: it looks allocated.
        let outside_the_region = [(FIRST, 0), (FIRST, 4), (FIRST, 2804)];
        let behind_the_region = [(FIRST, 12_288 - 4)];
        let reserved =
            [0, 900, 956, 964, 6904, 6908, 8188, 8192].map(|at| (ChunkName::Reserved, at));
        let unknown = [2, 99, u64::MAX].map(|number| (ChunkName::Numbered(number), 0));
        for (chunk, offset) in inside_an_area
            .into_iter()
            .chain(freed_or_never_given)
            .chain(not_on_a_granule)
            .chain(behind_the_chunk)
            .chain(at_the_end_of_addresses)
            .chain(outside_the_region)
            .chain(behind_the_region)
            .chain(reserved)
            .chain(unknown)
        {
            refused(simulator, chunk, offset);
        }
    }
}

#[test]
fn the_borders_of_a_region_inside_a_page_are_no_areas() {
    // Both ends of the first chunk are marked allocated, with bounds, and are never given out.
    let regions = Regions { static_size: 4100, reserved_size: 0, dyn_size: 20_000 };
    for profile in ALL {
        let mut run = Run::new(32 << 10, regions, profile);
        run.play("20000@4 -> 0:4\nc0 free=0 pages=11111");
        for offset in [0, 20_004, 20_008, 20_476] {
            refused(&mut run.simulator, FIRST, offset);
        }
        run.play("f 1\nall live=0");
        refused(&mut run.simulator, FIRST, 4);
    }
}

#[test]
fn an_area_is_freed_once_whatever_size_is_claimed() {
    for profile in ALL {
        let mut run = furnished(profile);
        let place = Place { size: 7, ..run.place(1) };
        assert_eq!(run.simulator.free(place), Ok(100));
        run.simulator.take_events();
        refused(&mut run.simulator, place.chunk, place.offset);
        let across_pages = run.place(4);
        assert_eq!(run.simulator.free(across_pages), Ok(30_000));
        run.simulator.take_events();
        refused(&mut run.simulator, across_pages.chunk, across_pages.offset);
    }
}

#[test]
fn chunks_that_are_gone_or_never_were_hold_nothing() {
    for profile in ALL {
        let mut run = Run::behind_first_chunk(profile);
        run.play("32768@4 -> 1:0\n32768@4 -> 2:0\nf 1\nf 2\nb\nc2 free=32768");
        assert_eq!(run.simulator.placement().chunks().len(), 2, "chunk 1 is destroyed");
        refused(&mut run.simulator, CREATED, 0);
        refused(&mut run.simulator, ChunkName::Reserved, 0);
        // The next chunk may take the place of the destroyed one, but not its name.
        run.play("32768@4 -> 2:0\n32768@4 -> 3:0");
        refused(&mut run.simulator, CREATED, 0);
    }
}
