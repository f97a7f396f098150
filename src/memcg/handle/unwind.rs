//! Why handles may be used after a panic was caught.
//!
//! No code of users runs under a lock of the library (L2, E3), and none runs between two changes that
//! belong together. What a callback's panic interrupts is undone, or is complete: a charge is either made
//! or not. So a thread that catches a panic finds every cgroup, charge and watch whole. What users have
//! registered is theirs: a hook that panics may leave its own state half-changed, and is called again.

use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::memcg::error::Refusal;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::handle::peak_reader::PeakReader;
use crate::memcg::handle::throttle::Throttle;
use crate::memcg::notify::registration::Registration;
use crate::memcg::notify::tree_watch::TreeWatch;
use crate::memcg::notify::watch::EventWatch;
use crate::memcg::tree::current::{EnterGuard, Held};

impl UnwindSafe for Memcg {}
impl RefUnwindSafe for Memcg {}
impl UnwindSafe for Charge {}
impl RefUnwindSafe for Charge {}
impl UnwindSafe for PeakReader {}
impl RefUnwindSafe for PeakReader {}
impl UnwindSafe for Registration {}
impl RefUnwindSafe for Registration {}
impl UnwindSafe for EventWatch {}
impl RefUnwindSafe for EventWatch {}
impl UnwindSafe for TreeWatch {}
impl RefUnwindSafe for TreeWatch {}
impl UnwindSafe for Throttle {}
impl RefUnwindSafe for Throttle {}
impl UnwindSafe for EnterGuard {}
impl RefUnwindSafe for EnterGuard {}
impl UnwindSafe for Held {}
impl RefUnwindSafe for Held {}
// All errors that tell of a refusal are so with it.
impl UnwindSafe for Refusal {}
impl RefUnwindSafe for Refusal {}
