//! What a new area holds.

use super::*;

/// Allocates, dirties every copy, frees; in phases of growth and shrinking so that chunks come
/// and go. Every new area must read as zero on every CPU.
fn new_areas_read_as_zero_amid_churn(profile: Profile, populate: Populate) {
    let pcpu = builder().profile(profile).populate(populate).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let mut choices = Choices(7);
    let mut live: Vec<Area<'_>> = Vec::new();
    let (mut most_pages, mut served_atomic) = (0, 0);
    for phase in 0..6 {
        for _ in 0..700 {
            let grows = choices.below(10) < if phase % 2 == 0 { 7 } else { 2 };
            if !grows && !live.is_empty() {
                live.swap_remove(choices.below(live.len())).free();
                continue;
            }
            let align = choices.of(&[4, 8, 16, 64, 128, 256, 1024, 4096]);
            let size = match choices.below(20) {
                0 => 1 + choices.below(32_768),
                1..6 => 1 + choices.below(4096),
                _ => 1 + choices.below(600),
            };
            let gfp = choices.of(&[Gfp::KERNEL, Gfp::KERNEL_ACCOUNT, Gfp::NOWAIT, Gfp::ATOMIC]);
            match Area::new(&pcpu, size, align, gfp) {
                Ok(mut area) => {
                    assert!(area.holds(0), "{profile:?} {populate:?}: {size} bytes by {align}");
                    assert_eq!(area.ptr.as_ptr().addr().get() % align, 0);
                    area.fill(0xff);
                    served_atomic += usize::from(!gfp.may_block());
                    live.push(area);
                }
                Err(error) => assert!(error.is_no_room() && !gfp.may_block(), "{error}"),
            }
            most_pages = most_pages.max(pcpu.stats().nr_populated);
        }
        assert_eq!(pcpu.verify(), Ok(()));
    }
    assert!(live.iter().all(|area| area.holds(0xff)), "nobody else wrote to a live area");
    live.into_iter().for_each(Area::free);
    // Balance work empties the caches bit by bit.
    pcpu.trim();
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes, tenant.current()), (0, 0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
    assert!(served_atomic > 100 && stats.nr_max_chunks > 4, "the test met what it is about");
    assert!(stats.nr_populated < most_pages, "pages were given back");
}

#[test]
fn new_areas_read_as_zero_after_dirty_frees_when_lazy() {
    for profile in PROFILES {
        new_areas_read_as_zero_amid_churn(profile, Populate::Lazy);
    }
}

#[test]
fn new_areas_read_as_zero_after_dirty_frees_when_eager() {
    for profile in PROFILES {
        new_areas_read_as_zero_amid_churn(profile, Populate::Eager);
    }
}

#[test]
fn new_areas_read_as_zero_after_dirty_frees_when_whole() {
    for profile in PROFILES {
        new_areas_read_as_zero_amid_churn(profile, Populate::Whole);
    }
}

#[test]
fn granules_that_change_their_alignment_read_as_zero() {
    for populate in POPULATES {
        let pcpu = builder().populate(populate).build().unwrap();
        let mut place = None;
        for align in [64, 4096, 128, 4096, 256, 4, 4096, 8] {
            let mut area = Area::new(&pcpu, 4096, align, Gfp::KERNEL).unwrap();
            assert_eq!(*place.get_or_insert(area.place()), area.place(), "the same granules");
            assert!(area.holds(0), "{populate:?}, aligned to {align}");
            area.fill(0xff);
            area.free();
        }
    }
}

#[test]
fn every_size_rounds_up_to_whole_granules() {
    let pcpu = builder().build().unwrap();
    for (size, rounded) in [(1, 4), (3, 4), (4, 4), (5, 8), (32_767, 32_768), (32_768, 32_768)] {
        let area = Area::new(&pcpu, size, 1, Gfp::KERNEL).unwrap();
        assert_eq!((area.place().size, pcpu.stats().live_bytes), (rounded, rounded as u64));
        area.free();
    }
}
