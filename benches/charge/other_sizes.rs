//! The loop of `in_turn_1t` with other amounts than 512 bytes, and with other numbers of cgroups.
//!
//! Group `other_sizes`; the time is for one charge and its end, on one thread. The functions are
//! those of `in_turn_1t`, each with the end `_<n>_<bytes>b`.
//!
//! | n | bytes |
//! |---|---|
//! | 64, 1 000 | 64, 700, 3 000, 20 000: a small object, no power of two, most of a page, several pages |
//! | 1 500, 3 000 | 512: between the steps of `in_turn_1t` |

use criterion::Criterion;

use super::in_turn::{Case, all};
use super::{BYTES, measure};

pub(crate) fn other_sizes(criterion: &mut Criterion) {
    let mut group = measure::short_group(criterion, "other_sizes");
    let sizes = [64, 700, 3_000, 20_000];
    let by_size = [64, 1_000].into_iter().flat_map(|cgroups| sizes.map(|bytes| (cgroups, bytes)));
    for (cgroups, bytes) in by_size.chain([(1_500, BYTES), (3_000, BYTES)]) {
        let suffix = format!("{cgroups}_{bytes}b");
        all(&mut group, 1, &Case { cgroups, bytes, suffix });
    }
    group.finish();
}
