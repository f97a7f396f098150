//! A tree and its checks, for the models.

use crate::arena::{Arena, BalanceMode, Config, Populate};
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::tree::Tree;
use crate::placement::{Profile, Regions};
use crate::sys::Machine;

/// A tree on a machine of two CPUs.
pub(crate) fn root() -> Memcg {
    let arena = || {
        let config = Config {
            machine: Machine::uniform(2).unwrap(),
            profile: Profile::default(),
            unit_size: 32 << 10,
            regions: Regions::DEFAULT,
            populate: Populate::Lazy,
            balance: BalanceMode::Manual,
            cached_bytes: 0,
            holds: "areas",
        };
        Arena::new(config).unwrap()
    };
    Memcg::root_of(&Tree::new(arena(), arena(), false).unwrap())
}

/// Nothing is charged but for `bytes`, whatever stocks hold.
pub(crate) fn assert_charged(memcg: &Memcg, bytes: u64) {
    memcg.drain();
    assert_eq!((memcg.current(), memcg.cached()), (bytes, 0), "{memcg:?}");
    assert_eq!(memcg.node().counter().usage(), bytes, "{memcg:?}");
}

/// A charge that came out of, or went into, this CPU's stock before.
pub(crate) fn warm(memcg: &Memcg, bytes: u64) {
    drop(memcg.try_charge(bytes).unwrap());
}
