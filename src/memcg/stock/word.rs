//! What a CPU's stock holds for one token, in one word.
//!
//! ```text
//!   63      52 51    40 39 38        20 19 18         0
//!   ├─ count ─┼─ place ─┤0├── room ────┤0├── amount ──┤
//! ```
//!
//! * *amount*: bytes that are charged ahead on this CPU.
//! * *room*: how many more the CPU may keep. Amount and room together are the token's *grant*.
//! * *place*: where the token is among those with a grant on this CPU; 0 without a grant.
//! * *count*: references that were taken on this CPU, less those that were given back here. Signed.
//!
//! So one commit changes amount, room and count. An amount that is not there, and room that is not
//! there, set the bit above the field: a sequence adds a difference and looks at one bit. A count
//! that does not fit its field overflows the word.
//!
//! * T6: amount + room ≤ [`BATCH`], and bits 19 and 39 are 0.

use std::fmt;

/// The most that a CPU's stock holds for one token, in bytes: the kernel's 64 pages
/// (`MEMCG_CHARGE_BATCH` since 6.1).
pub(crate) const BATCH: u64 = 64 * 4096;

const AMOUNT_BITS: u32 = 20;
const ROOM: u32 = AMOUNT_BITS;
const PLACE: u32 = ROOM + AMOUNT_BITS;
const COUNT: u32 = 52;

const FIELD: u64 = (1 << AMOUNT_BITS) - 1;
const PLACE_FIELD: u64 = (1 << (COUNT - PLACE)) - 1;

/// The largest place.
pub(crate) const MAX_PLACE: usize = PLACE_FIELD as usize;

const _: () = assert!(BATCH < 1 << (AMOUNT_BITS - 1), "T6: the guard bits stay free");

/// A word of a stock; see the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct StockWord(u64);

impl StockWord {
    /// Set when more was taken than the amount.
    pub(crate) const TAKE_GUARD: u32 = ROOM - 1;
    /// Set when more was put than there was room.
    pub(crate) const PUT_GUARD: u32 = PLACE - 1;

    /// Nothing, and no grant.
    pub(crate) const EMPTY: StockWord = StockWord(0);
    /// The largest count.
    pub(crate) const MAX_COUNT: u64 = (1 << (u64::BITS - COUNT - 1)) - 1;

    pub(crate) const fn from_bits(bits: u64) -> Self {
        StockWord(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// What taking `bytes`, at most a [`BATCH`], and `references` adds to a word.
    #[inline(always)]
    pub(crate) const fn taking(bytes: u64, references: i32) -> u64 {
        Self::difference((bytes << ROOM).wrapping_sub(bytes), references)
    }

    /// What putting `bytes`, at most a [`BATCH`], and `references` adds to a word.
    #[inline(always)]
    pub(crate) const fn putting(bytes: u64, references: i32) -> u64 {
        Self::difference(bytes.wrapping_sub(bytes << ROOM), references)
    }

    #[inline(always)]
    const fn difference(bytes: u64, references: i32) -> u64 {
        bytes.wrapping_add((references as u64) << COUNT)
    }

    /// As the sequence with that guard bit.
    fn add<const GUARD: u32>(self, difference: u64) -> Option<Self> {
        let sum = (self.0 as i64).checked_add(difference as i64)? as u64;
        (sum >> GUARD & 1 == 0).then_some(StockWord(sum))
    }

    /// Without `bytes` of the amount, and with so many references more; `None` when so much is not
    /// there, or the count does not fit.
    pub(crate) fn take(self, bytes: u64, references: i32) -> Option<Self> {
        debug_assert!(bytes <= BATCH, "T6");
        self.add::<{ Self::TAKE_GUARD }>(Self::taking(bytes, references))
    }

    /// With `bytes` more, and so many references more; `None` when there is no room, or the count
    /// does not fit.
    pub(crate) fn put(self, bytes: u64, references: i32) -> Option<Self> {
        debug_assert!(bytes <= BATCH, "T6");
        self.add::<{ Self::PUT_GUARD }>(Self::putting(bytes, references))
    }

    pub(crate) fn amount(self) -> u64 {
        self.0 & FIELD
    }

    fn room(self) -> u64 {
        self.0 >> ROOM & FIELD
    }

    pub(crate) fn grant(self) -> u64 {
        self.amount() + self.room()
    }

    /// 0 without a grant.
    pub(crate) fn place(self) -> usize {
        (self.0 >> PLACE & PLACE_FIELD) as usize
    }

    pub(crate) fn count(self) -> i64 {
        self.0 as i64 >> COUNT
    }

    /// With that grant, at least the amount, at that place.
    pub(crate) fn granted(self, grant: u64, place: usize) -> Self {
        debug_assert!((self.amount()..=BATCH).contains(&grant), "T6");
        debug_assert!(place <= MAX_PLACE, "T6");
        let count = self.0 >> COUNT << COUNT;
        let room = (grant - self.amount()) << ROOM;
        StockWord(count | (place as u64) << PLACE | room | self.amount())
    }

    /// With nothing but the grant.
    pub(crate) fn emptied(self) -> Self {
        StockWord(self.0 - self.amount() + (self.amount() << ROOM))
    }

    /// Without amount and grant.
    pub(crate) fn revoked(self) -> Self {
        StockWord(self.0 >> COUNT << COUNT)
    }

    /// With a count of 0.
    pub(crate) fn without_count(self) -> Self {
        StockWord(self.0 & ((1 << COUNT) - 1))
    }
}

impl fmt::Debug for StockWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StockWord")
            .field("amount", &self.amount())
            .field("grant", &self.grant())
            .field("place", &self.place())
            .field("count", &self.count())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(amount: u64, grant: u64, place: usize, count: i64) -> StockWord {
        let empty = StockWord((count as u64) << COUNT);
        let word = empty.granted(grant, place);
        word.put(amount, 0).expect("room")
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(u64, i32),
        Put(u64, i32),
        Grant(u64, usize),
        Empty,
        Revoke,
        WithoutCount,
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || prop_oneof![0..=BATCH, Just(0), Just(BATCH), 0_u64..10];
        prop_oneof![
            4 => (bytes(), -1..=1).prop_map(|(bytes, count)| Step::Take(bytes, count)),
            4 => (bytes(), -1..=1).prop_map(|(bytes, count)| Step::Put(bytes, count)),
            1 => (bytes(), 1..=MAX_PLACE).prop_map(|(grant, place)| Step::Grant(grant, place)),
            1 => Just(Step::Empty),
            1 => Just(Step::Revoke),
            1 => Just(Step::WithoutCount),
        ]
    }

    proptest! {
        /// Every operation against four plain numbers.
        #[test]
        fn a_word_is_four_numbers(steps in proptest::collection::vec(step(), 1..60), first in -2048_i64..2048) {
            let (mut amount, mut grant, mut place, mut count) = (0_u64, 0_u64, 0_usize, first);
            let mut word = word(0, 0, 0, first);
            for step in steps {
                match step {
                    Step::Take(bytes, more) => {
                        let fits = bytes <= amount && (-2048..2048).contains(&(count + i64::from(more)));
                        prop_assert_eq!(word.take(bytes, more).is_some(), fits);
                        if let Some(new) = word.take(bytes, more) {
                            (word, amount, count) = (new, amount - bytes, count + i64::from(more));
                        }
                    }
                    Step::Put(bytes, more) => {
                        let fits = amount + bytes <= grant && (-2048..2048).contains(&(count + i64::from(more)));
                        prop_assert_eq!(word.put(bytes, more).is_some(), fits);
                        if let Some(new) = word.put(bytes, more) {
                            (word, amount, count) = (new, amount + bytes, count + i64::from(more));
                        }
                    }
                    Step::Grant(new, at) => {
                        (grant, place) = (new.max(amount), at);
                        word = word.granted(grant, place);
                    }
                    Step::Empty => (word, amount) = (word.emptied(), 0),
                    Step::Revoke => (word, amount, grant, place) = (word.revoked(), 0, 0, 0),
                    Step::WithoutCount => (word, count) = (word.without_count(), 0),
                }
                prop_assert_eq!((word.amount(), word.grant()), (amount, grant), "{:?}", word);
                prop_assert_eq!((word.place(), word.count()), (place, count), "{:?}", word);
            }
        }
    }

    #[test]
    fn a_word_that_is_not_granted_counts_references_only() {
        let word = StockWord(0);
        assert_eq!(word.take(0, 1).unwrap().count(), 1);
        assert_eq!(word.put(0, -1).unwrap().count(), -1);
        assert!(word.take(1, 0).is_none() && word.put(1, 0).is_none());
    }
}
