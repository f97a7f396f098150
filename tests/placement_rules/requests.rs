//! Requests that no allocator could serve, and how legal ones are rounded.

use percpu_memcg::placement::{
    InvalidRequest, PAGE_SIZE, Profile, Regions, Request, RequestFlags, Simulator,
};

use crate::script::{ODD, Run};

const SIZES: [u64; 7] = [0, 32_769, 32_772, 1 << 32, 1 << 63, u64::MAX - 3, u64::MAX];
const ALIGNS: [u64; 8] = [5, 6, 12, 4095, 8192, 1 << 40, 1 << 63, u64::MAX];

fn every_flags() -> impl Iterator<Item = RequestFlags> {
    (0..8).map(|bits| RequestFlags {
        atomic: bits & 1 != 0,
        account: bits & 2 != 0,
        reserved: bits & 4 != 0,
    })
}

fn illegal() -> impl Iterator<Item = (u64, u64)> {
    SIZES.map(|size| (size, 4)).into_iter().chain(ALIGNS.map(|align| (8, align)))
}

#[track_caller]
fn ask_for_the_impossible(simulator: &mut Simulator) {
    let before = (simulator.placement().stats(), simulator.placement().chunks());
    for (size, align) in illegal() {
        for flags in every_flags() {
            assert_eq!(simulator.alloc(size, align, flags), None, "{size}@{align} {flags:?}");
            assert_eq!(simulator.take_events(), []);
        }
    }
    assert_eq!((simulator.placement().stats(), simulator.placement().chunks()), before);
}

#[test]
fn illegal_requests_change_nothing_now_or_later() {
    let steps = ["100@8", "account 4096@4", "atomic 20@16", "32768@4", "reserved 64@64", "7000@4"];
    for profile in [Profile::LINUX_5_10, Profile::LINUX_6_13, Profile::DEFAULT] {
        let mut disturbed = Run::new(32 << 10, ODD, profile);
        let mut quiet = Run::new(32 << 10, ODD, profile);
        let mut places = Vec::new();
        for step in steps {
            let words: Vec<&str> = step.split(' ').collect();
            let (size, align) = words.last().unwrap().split_once('@').unwrap();
            let flags = RequestFlags {
                atomic: words.contains(&"atomic"),
                account: words.contains(&"account"),
                reserved: words.contains(&"reserved"),
            };
            let (size, align) = (size.parse().unwrap(), align.parse().unwrap());
            ask_for_the_impossible(&mut disturbed.simulator);
            let place = quiet.simulator.alloc(size, align, flags);
            assert_eq!(disturbed.simulator.alloc(size, align, flags), place);
            places.extend(place);
            // What balance work does depends on requests that were refused, if they were legal.
            ask_for_the_impossible_between_runs(&mut disturbed, &mut quiet);
        }
        for place in places {
            ask_for_the_impossible_between_runs(&mut disturbed, &mut quiet);
            assert_eq!(disturbed.simulator.free(place), quiet.simulator.free(place));
        }
        ask_for_the_impossible_between_runs(&mut disturbed, &mut quiet);
    }
}

#[track_caller]
fn ask_for_the_impossible_between_runs(disturbed: &mut Run, quiet: &mut Run) {
    let (disturbed, quiet) = (&mut disturbed.simulator, &mut quiet.simulator);
    assert_eq!(disturbed.take_events(), quiet.take_events());
    ask_for_the_impossible(disturbed);
    disturbed.balance();
    quiet.balance();
    assert_eq!(disturbed.take_events(), quiet.take_events());
    assert_eq!(disturbed.placement().chunks(), quiet.placement().chunks());
}

#[test]
fn every_reason_has_its_error() {
    let refused = |size, align| Request::new(size, align, RequestFlags::default()).unwrap_err();
    assert_eq!(refused(0, 4), InvalidRequest::ZeroSize);
    for size in SIZES.into_iter().skip(1) {
        assert_eq!(refused(size, 4), InvalidRequest::TooLarge { size });
    }
    for align in ALIGNS {
        assert_eq!(refused(8, align), InvalidRequest::BadAlign { align });
    }
}

#[test]
fn alignments_below_a_granule_count_as_one() {
    for align in 0..=3 {
        let request = Request::new(4, align, RequestFlags::default()).unwrap();
        assert_eq!((request.size(), request.align()), (4, 4));
    }
    Run::new(32 << 10, Regions::DEFAULT, Profile::default()).play(
        "1@0 -> 0:0
         2@1 -> 0:4
         3@2 -> 0:8
         4@3 -> 0:12
         5@4 -> 0:16
         1@8 -> 0:24
         1@4096 -> 0:4096
         all live=7 live_bytes=32",
    );
}

#[test]
fn the_limits_themselves_are_legal() {
    for size in [32_765, 32_768] {
        for align in [4, PAGE_SIZE as u64] {
            let request = Request::new(size, align, RequestFlags::default()).unwrap();
            assert_eq!((request.size(), request.align()), (32_768, align as usize));
        }
    }
}
