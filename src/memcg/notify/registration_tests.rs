use parking_lot::Mutex;

use super::*;

type Named = Registry<&'static str>;

fn names(registry: &Named) -> Vec<&'static str> {
    registry.live().map(|name| *name).collect()
}

#[test]
fn costs_a_pointer() {
    assert_eq!(size_of::<Registry<dyn Fn() + Send + Sync>>(), size_of::<*const ()>());
}

#[test]
fn order_counts_first_and_then_age() {
    let registry = Named::new();
    assert_eq!(names(&registry), [""; 0]);
    for (order, name) in [(5, "a"), (0, "b"), (5, "c"), (-1, "d"), (0, "e"), (i32::MAX, "f")] {
        registry.insert(order, Arc::new(name)).detach();
    }
    assert_eq!(names(&registry), ["d", "b", "e", "a", "c", "f"]);
}

#[test]
fn registration_removes_its_own_callback_when_it_is_dropped() {
    let registry = Named::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| registry.insert(0, Arc::new(name)));
    drop(b);
    assert_eq!(names(&registry), ["a", "c"]);
    let d = registry.insert(0, Arc::new("d"));
    drop(a);
    assert_eq!(names(&registry), ["c", "d"]);
    c.detach();
    drop(d);
    assert_eq!(names(&registry), ["c"]);
}

#[test]
fn callback_that_was_unregistered_before_its_turn_is_left_out() {
    let registry = Named::new();
    let [_a, b, _c] = ["a", "b", "c"].map(|name| registry.insert(0, Arc::new(name)));
    let mut live = registry.live();
    assert_eq!(live.next().as_deref(), Some(&"a"));
    drop(b);
    assert_eq!(live.next().as_deref(), Some(&"c"));
    assert!(live.next().is_none());
}

#[test]
fn registration_keeps_nothing_alive() {
    let (registry, callback) = (Named::new(), Arc::new("a"));
    let weak = Arc::downgrade(&callback);
    let registration = registry.insert(0, callback);
    drop(registry);
    assert!(weak.upgrade().is_none());
    drop(registration);
}

#[test]
fn callback_drops_its_own_registration_and_registers_another() {
    type Callbacks = Registry<dyn Fn() + Send + Sync>;
    let registry = Arc::new(Callbacks::new());
    let own = Arc::new(Mutex::new(None::<Registration>));
    let callback: Arc<dyn Fn() + Send + Sync> = Arc::new({
        let (registry, own) = (Arc::downgrade(&registry), Arc::clone(&own));
        move || {
            let before = own.lock().take();
            drop(before);
            registry.upgrade().unwrap().insert(0, Arc::new(|| ())).detach();
        }
    });
    let dropped = Arc::downgrade(&callback);
    *own.lock() = Some(registry.insert(0, callback));
    registry.live().for_each(|callback| callback());
    assert!(dropped.upgrade().is_none(), "the one that ran is gone");
    assert_eq!(registry.live().count(), 1, "the other one is there");
}
