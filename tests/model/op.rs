//! What can be done to the allocator and its tree, chosen at random.
//!
//! Operations name their targets by [`Index`], resolved among what exists when their turn comes, so
//! that every sequence has a meaning and stays one when operations are left out.

use std::fmt;

use percpu_memcg::Gfp;
use percpu_memcg::machine::MapOp;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// One step.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Creates a cgroup below any, live or removed.
    Create {
        parent: Index,
        name: String,
    },
    /// Removes any cgroup, or the one that pays at present; a handle may be kept.
    Remove {
        cgroup: Option<Index>,
        keep_handle: bool,
    },
    /// Drops the handle of a removed cgroup.
    Forget {
        cgroup: Index,
    },
    /// Limits any cgroup, or the one that pays at present.
    SetMax {
        cgroup: Option<Index>,
        max: Max,
    },
    /// Looks `to` up by its path, from the root, or from `from` if it is an ancestor.
    Find {
        from: Index,
        to: Index,
        slashes: usize,
    },
    FindMissing {
        from: Index,
    },
    Enter {
        cgroup: Index,
    },
    /// Enters a cgroup of another allocator: no cgroup of this one can be charged by that.
    EnterStranger,
    /// Ends any scope, or the innermost.
    Leave {
        scope: Index,
        innermost: bool,
    },
    Attach {
        cgroup: Index,
    },
    /// The same request so many times.
    Alloc {
        request: Request,
        times: usize,
    },
    /// A typed object; zeroed, or initialised from a seed.
    AllocTyped {
        gfp: Gfp,
        seed: Option<u64>,
    },
    /// Frees an area and so many others.
    Free {
        area: Index,
        others: usize,
    },
    FreeBad {
        area: Index,
        bad: Bad,
    },
    /// Writes one copy, or the first few.
    Write {
        area: Index,
        cpu: Option<Index>,
        seed: u64,
    },
    Check {
        area: Index,
    },
    Balance,
    Fault {
        op: Option<MapOp>,
        nth: u64,
    },
    ClearFaults,
}

/// A request for a raw area, legal or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) gfp: Gfp,
    pub(crate) reserved: bool,
}

/// A limit, resolved when it is set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Max {
    None,
    Bytes(u64),
    /// Present usage, and so many bytes more or less.
    Usage(i64),
    /// Room for so many more areas of a size, to the byte, or one byte more or less.
    Fits {
        size: usize,
        areas: u64,
        slack: i64,
    },
}

/// A pointer that names no live area.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bad {
    Interior(Index),
    Unaligned,
    OtherCopy(Index),
    Freed(Index),
    OnTheStack,
    Dangling,
    OtherAllocator,
}

/// Sizes that occur often, so that limits can be met exactly.
const USUAL_SIZES: [usize; 4] = [8, 8, 8, 256];

/// What a case is mostly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Small areas, many cgroups.
    Charges,
    /// Areas of pages that come and go, so that chunks do, too.
    Pages,
}

fn size(theme: Theme) -> impl Strategy<Value = usize> {
    let [small, large] = match theme {
        Theme::Charges => [14, 4],
        Theme::Pages => [3, 14],
    };
    prop_oneof![
        small => select(&USUAL_SIZES[..]),
        small => 1..=128usize,
        5 => 129..=1024usize,
        large => 1025..=8192usize,
        4 => 4097..=32_768usize,
        1 => select(&[0, 32_764, 32_765, 32_768, 32_769, 33_000][..]),
    ]
}

fn align() -> impl Strategy<Value = usize> {
    let shift = prop_oneof![20 => 0..=7u32, 6 => 8..=12u32, 1 => Just(13)];
    shift.prop_map(|shift| 1 << shift)
}

fn gfp() -> impl Strategy<Value = Gfp> {
    let base = prop_oneof![
        6 => Just(Gfp::KERNEL),
        2 => Just(Gfp::NOWAIT),
        2 => Just(Gfp::ATOMIC),
        1 => Just(Gfp::KERNEL | Gfp::NOFAIL),
        1 => Just(Gfp::KERNEL | Gfp::NORETRY),
        1 => Just(Gfp::NOWAIT | Gfp::NOFAIL),
    ];
    (base, prop::bool::weighted(0.8))
        .prop_map(|(base, account)| if account { base | Gfp::ACCOUNT } else { base })
}

fn request(theme: Theme) -> impl Strategy<Value = Request> {
    (size(theme), align(), gfp(), prop::bool::weighted(0.15))
        .prop_map(|(size, align, gfp, reserved)| Request { size, align, gfp, reserved })
}

fn max() -> impl Strategy<Value = Max> {
    prop_oneof![
        2 => Just(Max::None),
        1 => Just(Max::Bytes(0)),
        2 => (0..=100_000u64).prop_map(Max::Bytes),
        2 => (-2000..=2000i64).prop_map(Max::Usage),
        12 => (select(&USUAL_SIZES[..]), 1..=2u64, select(&[-1, 0, 0, 1][..]))
            .prop_map(|(size, areas, slack)| Max::Fits { size, areas, slack }),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => select(&["a", "b", "c", "d", "e", "f"][..]).prop_map(String::from),
        1 => select(&["ü b", "...", "-"][..]).prop_map(String::from),
        1 => select(&["", ".", "..", "x/y", "/", "new\nline", "ze\0ro"][..]).prop_map(String::from),
        1 => (255..=256usize).prop_map(|bytes| "l".repeat(bytes)),
    ]
}

fn bad() -> impl Strategy<Value = Bad> {
    prop_oneof![
        2 => any::<Index>().prop_map(Bad::Interior),
        1 => Just(Bad::Unaligned),
        2 => any::<Index>().prop_map(Bad::OtherCopy),
        4 => any::<Index>().prop_map(Bad::Freed),
        1 => Just(Bad::OnTheStack),
        1 => Just(Bad::Dangling),
        1 => Just(Bad::OtherAllocator),
    ]
}

fn map_op() -> impl Strategy<Value = Option<MapOp>> {
    let kinds = vec![MapOp::Reserve, MapOp::Prefault, MapOp::Discard, MapOp::Bind];
    prop_oneof![1 => Just(None), 1 => select(kinds).prop_map(Some)]
}

fn create() -> impl Strategy<Value = Op> {
    (any::<Index>(), name()).prop_map(|(parent, name)| Op::Create { parent, name })
}

fn enter() -> impl Strategy<Value = Op> {
    any::<Index>().prop_map(|cgroup| Op::Enter { cgroup })
}

fn op(theme: Theme) -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    let shapes_the_tree = prop_oneof![
        8 => create(),
        6 => (prop::option::of(index()), prop::bool::weighted(0.3)).prop_map(|(cgroup, keep_handle)| Op::Remove { cgroup, keep_handle }),
        1 => index().prop_map(|cgroup| Op::Forget { cgroup }),
        7 => (prop::option::of(index()), max())
            .prop_map(|(cgroup, max)| Op::SetMax { cgroup, max }),
        2 => (index(), index(), 1..=3usize)
            .prop_map(|(from, to, slashes)| Op::Find { from, to, slashes }),
        1 => index().prop_map(|from| Op::FindMissing { from }),
    ];
    let chooses_the_payer = prop_oneof![
        7 => enter(),
        1 => Just(Op::EnterStranger),
        3 => (index(), any::<bool>()).prop_map(|(scope, innermost)| Op::Leave { scope, innermost }),
        3 => index().prop_map(|cgroup| Op::Attach { cgroup }),
    ];
    let times = prop_oneof![3 => Just(1), 1 => 2..=8usize];
    let allocates = prop_oneof![
        26 => (request(theme), times)
            .prop_map(|(request, times)| Op::Alloc { request, times }),
        6 => (gfp(), any::<Option<u64>>()).prop_map(|(gfp, seed)| Op::AllocTyped { gfp, seed }),
    ];
    let others = prop_oneof![4 => Just(0), 1 => 1..=20usize];
    let uses = prop_oneof![
        14 => (index(), others).prop_map(|(area, others)| Op::Free { area, others }),
        3 => (index(), bad()).prop_map(|(area, bad)| Op::FreeBad { area, bad }),
        12 => (index(), prop::option::of(index()), any::<u64>())
            .prop_map(|(area, cpu, seed)| Op::Write { area, cpu, seed }),
        2 => index().prop_map(|area| Op::Check { area }),
    ];
    let troubles = prop_oneof![
        2 => Just(Op::Balance),
        2 => (map_op(), 1..=3u64).prop_map(|(op, nth)| Op::Fault { op, nth }),
        1 => Just(Op::ClearFaults),
    ];
    let tree = if theme == Theme::Pages { 1 } else { 4 };
    prop_oneof![
        5 * tree => shapes_the_tree,
        3 * tree => chooses_the_payer,
        35 => allocates,
        26 => uses,
        5 => troubles,
    ]
}

/// The steps of one case; prints one a line.
#[derive(Clone)]
pub(crate) struct Steps(pub(crate) Vec<Op>);

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |(step, op)| write!(f, "\n  {step}: {op:?}");
        self.0.iter().enumerate().try_for_each(number)
    }
}

/// Some cgroups to begin with, then anything.
pub(crate) fn steps() -> impl Strategy<Value = Steps> {
    let themed = |theme, steps| {
        let tree = prop::collection::vec(create(), 0..8);
        let anything = prop::collection::vec(op(theme), 1..steps);
        (tree, prop::option::of(enter()), anything)
            .prop_map(|(tree, enter, rest)| tree.into_iter().chain(enter).chain(rest).collect())
    };
    prop_oneof![3 => themed(Theme::Charges, 150), 1 => themed(Theme::Pages, 200)].prop_map(Steps)
}
