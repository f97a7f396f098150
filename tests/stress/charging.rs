//! Steps with charges and collections.

use std::collections::HashMap;

use percpu_memcg::{ChargeError, Limit, Memcg};

use crate::held::{Item, What};
use crate::steps::Hand;
use crate::world::count;

impl Hand {
    /// A refusal is one of a limit that there was.
    pub(crate) fn note_refusal(&self, error: &ChargeError) {
        assert_ne!(error.max, Limit::MAX, "{error}");
        let needed = error.usage.saturating_add(error.cached).saturating_add(error.requested);
        assert!(Limit::bytes(needed) > error.max, "{error}");
        count(&self.world.done.refusals);
    }

    pub(crate) fn charge(&mut self) {
        let (memcg, bytes) = (self.cgroup(), self.bytes());
        let charged = self.charge_of(&memcg, bytes);
        self.items.extend(charged);
    }

    /// Charges in one of the ways.
    fn charge_of(&mut self, memcg: &Memcg, bytes: u64) -> Option<Item> {
        count(&self.world.done.charges);
        let charged = match self.choices.below(6) {
            0 => memcg.charge(bytes),
            1 => memcg.try_charge(bytes),
            2 => Ok(memcg.charge_forced(bytes)),
            _ => {
                let gfp = self.gfp();
                let charged = memcg.charge_with(bytes, gfp);
                assert!(charged.is_ok() || !gfp.may_exceed(), "{gfp:?}: {charged:?}");
                charged
            }
        };
        match charged {
            Ok(charge) => {
                assert_eq!(charge.bytes(), bytes);
                Some(Item::charge(charge, memcg))
            }
            Err(error) => {
                self.note_refusal(&error);
                None
            }
        }
    }

    pub(crate) fn charge_and_drop(&mut self) {
        let (memcg, bytes) = (self.cgroup(), self.bytes());
        for _ in 0..self.choices.below(20) {
            drop(self.charge_of(&memcg, bytes));
        }
    }

    /// One of the items, if it is a charge.
    fn nth_charge(&mut self) -> Option<usize> {
        let nth = self.choices.below(self.items.len().max(1));
        self.items.get(nth).filter(|item| matches!(item.what, What::Charge(_))).map(|_| nth)
    }

    pub(crate) fn grow(&mut self) {
        let (more, way, gfp) = (self.bytes(), self.choices.below(4), self.gfp());
        let Some(nth) = self.nth_charge() else { return };
        let Item { what: What::Charge(charge), bytes, .. } = &mut self.items[nth] else { return };
        let grown = match way {
            0 => charge.grow(more),
            1 => charge.try_grow(more),
            2 => {
                // A panic of a callback comes when the bytes are charged.
                *bytes += more;
                charge.grow_forced(more);
                return;
            }
            _ => charge.grow_with(more, gfp),
        };
        match grown {
            Ok(()) => *bytes += more,
            Err(error) => {
                assert!(way != 3 || !gfp.may_exceed(), "{gfp:?}: {error}");
                self.note_refusal(&error);
            }
        }
    }

    pub(crate) fn shrink(&mut self) {
        let Some(nth) = self.nth_charge() else { return };
        let less = self.choices.below(self.items[nth].bytes as usize + 2) as u64;
        let Item { what: What::Charge(charge), bytes, .. } = &mut self.items[nth] else { return };
        assert_eq!(charge.shrink(less).is_ok(), less <= *bytes);
        *bytes = bytes.checked_sub(less).unwrap_or(*bytes);
    }

    pub(crate) fn split(&mut self) {
        let Some(nth) = self.nth_charge() else { return };
        let part = self.choices.below(self.items[nth].bytes as usize + 1) as u64;
        let Item { what: What::Charge(charge), bytes, payer } = &mut self.items[nth] else {
            return;
        };
        let split = charge.split(part).expect("it holds so much");
        *bytes -= part;
        let payer = payer.clone();
        self.items.push(Item { what: What::Charge(split), payer, bytes: part });
    }

    /// Merges two charges, if they are of one cgroup from the beginning.
    pub(crate) fn merge(&mut self) {
        let Some(nth) = self.nth_charge() else { return };
        let taken = self.items.swap_remove(nth);
        let What::Charge(other) = taken.what else { return };
        let into = self
            .items
            .iter()
            .position(|item| matches!(item.what, What::Charge(_)) && item.payer == taken.payer);
        let into = into.or_else(|| self.nth_charge());
        let Some(Item { what: What::Charge(charge), bytes, .. }) =
            into.and_then(|into| self.items.get_mut(into))
        else {
            return;
        };
        match charge.merge(other) {
            Ok(()) => *bytes += taken.bytes,
            Err(error) => {
                let what = What::Charge(error.into_charge());
                self.items.push(Item { what, ..taken });
            }
        }
    }

    pub(crate) fn transfer(&mut self) {
        let memcg = self.cgroup();
        let nth = self.choices.below(self.items.len().max(1));
        let Some(item) = self.items.get_mut(nth) else { return };
        // A panic of a callback comes when the charge was moved.
        let before = std::mem::replace(&mut item.payer, memcg.path());
        let moved = match &mut item.what {
            What::Charge(charge) => charge.transfer_to(&memcg),
            What::List(list) => list.transfer_to(&memcg),
            What::Map(map) => map.transfer_to(&memcg),
            _ => {
                item.payer = before;
                return;
            }
        };
        match moved {
            Ok(()) => count(&self.world.done.transfers),
            Err(error) => {
                item.payer = before;
                self.note_refusal(&error);
            }
        }
    }

    pub(crate) fn drop_one(&mut self) {
        if !self.items.is_empty() {
            let nth = self.choices.below(self.items.len());
            let item = self.items.swap_remove(nth);
            item.check();
        }
    }

    pub(crate) fn send(&mut self) {
        if !self.items.is_empty() {
            let nth = self.choices.below(self.items.len());
            let item = self.items.swap_remove(nth);
            let to = self.choices.below(self.world.mailboxes.len());
            self.world.mailboxes[to].lock().push_back(item);
        }
    }

    /// Takes what was sent, and drops most of it.
    pub(crate) fn receive(&mut self) {
        let received = std::mem::take(&mut *self.world.mailboxes[self.nth].lock());
        for item in received {
            if self.choices.once_in(3) {
                self.items.push(item);
            }
        }
    }

    pub(crate) fn pool_one(&mut self) {
        if !self.items.is_empty() {
            let nth = self.choices.below(self.items.len());
            self.world.pool(self.items.swap_remove(nth));
        }
    }

    pub(crate) fn unpool_one(&mut self) {
        self.items.extend(self.world.unpool());
    }

    pub(crate) fn account(&mut self) {
        let memcg = self.cgroup();
        let elements = self.choices.below(3000);
        let what = match self.choices.once_in(2) {
            true => What::List(memcg.account(Vec::with_capacity(elements))),
            false => What::Map(memcg.account(HashMap::with_capacity(elements))),
        };
        self.items.push(Item { what, payer: memcg.path(), bytes: 0 });
    }

    pub(crate) fn edit(&mut self) {
        let is_collection = |item: &Item| matches!(item.what, What::List(_) | What::Map(_));
        let Some(nth) = self.items.iter().position(is_collection) else { return };
        let (more, way) = (self.choices.below(2000), self.choices.below(3));
        // At the end, so that another one comes next.
        let item = self.items.swap_remove(nth);
        self.items.push(Item { bytes: 1, ..item });
        let last = self.items.len() - 1;
        let reserved = match (&mut self.items[last].what, way) {
            (What::List(list), 0) => list.reserve(more),
            (What::List(list), 1) => {
                list.edit().extend(0..more as u64);
                Ok(())
            }
            (What::List(list), _) => {
                list.edit().clear();
                list.shrink_to_fit();
                Ok(())
            }
            (What::Map(map), 0) => map.reserve(more),
            (What::Map(map), 1) => {
                map.edit().extend((0..more as u32).map(|key| (key, 1)));
                Ok(())
            }
            (What::Map(map), _) => {
                map.edit().clear();
                map.shrink_to_fit();
                Ok(())
            }
            _ => Ok(()),
        };
        if reserved.is_ok() {
            self.items[last].bytes = 0;
        }
        assert!(reserved.is_ok() || reserved.is_err_and(|error| error.is_limit()));
    }
}
