//! Real guests.

use std::sync::Mutex;
use std::thread;

use percpu_memcg::{Limit, Memcg, PerCpuAllocator};
use wasm_memcg::MemcgLimiter;
use wasmtime::{Engine, Instance, Module, Store};

const PAGE: u64 = 64 << 10;

/// Grows its memory and its table by as much as it is told, and writes to what it got.
const GUEST: &str = r#"
    (module
        (memory (export "memory") 1)
        (table $table 0 funcref)
        (func (export "grow") (param $pages i32) (result i32)
            (local $old i32)
            (local.set $old (memory.grow (local.get $pages)))
            (if (i32.ge_s (local.get $old) (i32.const 0))
                (then (i32.store8 (i32.mul (local.get $old) (i32.const 65536)) (i32.const 1))))
            (local.get $old))
        (func (export "grow_table") (param $elements i32) (result i32)
            (table.grow $table (ref.null func) (local.get $elements))))
"#;

struct Guest {
    store: Store<MemcgLimiter>,
    instance: Instance,
}

impl Guest {
    fn new(engine: &Engine, text: &str, tenant: &Memcg) -> wasmtime::Result<Guest> {
        let module = Module::new(engine, text)?;
        let mut store = Store::new(engine, MemcgLimiter::new(tenant));
        store.limiter(|limiter| limiter);
        let instance = Instance::new(&mut store, &module, &[])?;
        Ok(Guest { store, instance })
    }

    fn call(&mut self, function: &str, argument: i32) -> i32 {
        let function = self.instance.get_typed_func::<i32, i32>(&mut self.store, function).unwrap();
        function.call(&mut self.store, argument).unwrap()
    }
}

fn tenant(max: u64) -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(max)).unwrap();
    (pcpu, tenant)
}

#[test]
fn a_guest_grows_until_its_tenant_refuses_and_goes_on() {
    let (_pcpu, tenant) = tenant(10 * PAGE);
    let mut guest = Guest::new(&Engine::default(), GUEST, &tenant).unwrap();
    assert_eq!(tenant.current(), PAGE, "what it begins with");
    let grown: Vec<i32> = (0..12).map(|_| guest.call("grow", 1)).collect();
    assert_eq!(grown, [1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -1, -1]);
    assert_eq!((tenant.current(), guest.store.data().charged()), (10 * PAGE, 10 * PAGE));
    let refusal = guest.store.data().refusal().unwrap();
    assert_eq!((refusal.cgroup.as_str(), refusal.requested), ("/tenant", PAGE));
    drop(guest);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn guests_of_a_tenant_share_its_limit() {
    let (_pcpu, tenant) = tenant(10 * PAGE);
    let engine = Engine::default();
    let [mut one, mut two] = [(), ()].map(|()| Guest::new(&engine, GUEST, &tenant).unwrap());
    assert_eq!((one.call("grow", 5), two.call("grow", 5), two.call("grow", 3)), (1, -1, 1));
    assert!(
        Guest::new(&engine, GUEST, &tenant).is_err(),
        "no room for the memory that it begins with"
    );
    drop(one);
    assert_eq!((two.call("grow", 6), tenant.current()), (4, 10 * PAGE));
}

#[test]
fn tables_are_charged_too() {
    let (_pcpu, tenant) = tenant(PAGE + 8000);
    let mut guest = Guest::new(&Engine::default(), GUEST, &tenant).unwrap();
    assert_eq!((guest.call("grow_table", 600), guest.call("grow_table", 401)), (0, -1));
    assert_eq!(tenant.current(), PAGE + 4800);
    assert_eq!(guest.call("grow_table", 400), 600);
}

/// A maximum of the guest's own, and numbers beyond any memory: nothing is charged.
#[test]
fn what_cannot_be_grown_is_not_charged() {
    let (_pcpu, tenant) = tenant(1 << 60);
    let text = r#"
        (module
            (memory $small 1 4)
            (memory $large i64 1)
            (table $table i64 0 funcref)
            (func (export "small") (param i32) (result i32) (memory.grow $small (local.get 0)))
            (func (export "large") (param i32) (result i32)
                (i32.wrap_i64 (memory.grow $large (i64.extend_i32_s (local.get 0)))))
            (func (export "table") (param i32) (result i32)
                (i32.wrap_i64
                    (table.grow $table (ref.null func) (i64.extend_i32_s (local.get 0))))))
    "#;
    let mut guest = Guest::new(&Engine::default(), text, &tenant).unwrap();
    assert_eq!((guest.call("small", 3), guest.call("small", 1)), (1, -1));
    assert_eq!((guest.call("large", 2), guest.call("large", -1)), (1, -1));
    assert_eq!((guest.call("table", 100), guest.call("table", -1)), (0, -1));
    // Also not a byte less: wasmtime tells of failures that it did not ask about.
    assert_eq!(tenant.current(), (4 + 3) * PAGE + 800);
}

#[test]
fn hooks_make_room_before_a_guest_is_refused() {
    let (_pcpu, tenant) = tenant(10 * PAGE);
    let cached = Mutex::new(Some(tenant.charge(8 * PAGE).unwrap()));
    let _hook = tenant
        .on_reclaim(0, move |_| cached.lock().unwrap().take().map_or(0, |cached| cached.bytes()));
    let mut guest = Guest::new(&Engine::default(), GUEST, &tenant).unwrap();
    assert_eq!((guest.call("grow", 4), tenant.current()), (1, 5 * PAGE));
}

#[test]
fn a_store_may_outlive_its_tenant() {
    let (pcpu, tenant) = tenant(10 * PAGE);
    let mut guest = Guest::new(&Engine::default(), GUEST, &tenant).unwrap();
    tenant.remove().unwrap();
    assert_eq!(guest.call("grow", 20), 1, "the root pays, which has no limit");
    assert_eq!(pcpu.root().stat().charged, 21 * PAGE);
    drop(guest);
    assert_eq!(pcpu.root().stat().charged, 0);
}

#[test]
fn guests_on_many_threads_leave_nothing() {
    let (_pcpu, tenant) = tenant(40 * PAGE);
    let engine = Engine::default();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let Ok(mut guest) = Guest::new(&engine, GUEST, &tenant) else { continue };
                    while guest.call("grow", 3) >= 0 {}
                }
            });
        }
    });
    assert_eq!(tenant.current(), 0);
    assert!(tenant.peak() > 30 * PAGE && Limit::bytes(tenant.peak()) <= tenant.max());
}
