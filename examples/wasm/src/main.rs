//! Two tenants with a guest each, which grow until they are refused:
//! `cargo run --manifest-path examples/wasm/Cargo.toml`.

use percpu_memcg::{Limit, PerCpuAllocator};
use wasm_memcg::MemcgLimiter;
use wasmtime::{Engine, Instance, Module, Result, Store};

/// Takes a page of 64 KiB at a time until there are none, and returns how many it has.
const GUEST: &str = r#"
    (module
        (memory (export "memory") 1)
        (func (export "fill") (result i32)
            (loop $more
                (br_if $more (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0))))
            (memory.size)))
"#;

fn main() -> Result<()> {
    let engine = Engine::default();
    let module = Module::new(&engine, GUEST)?;
    let pcpu = PerCpuAllocator::new()?;
    for (name, max) in [("tenant-a", "1M"), ("tenant-b", "64M")] {
        let tenant = pcpu.root().create(name)?;
        tenant.set_max(max.parse::<Limit>()?)?;

        let mut store = Store::new(&engine, MemcgLimiter::new(&tenant));
        store.limiter(|limiter| limiter);
        let instance = Instance::new(&mut store, &module, &[])?;
        let pages = instance.get_typed_func::<(), i32>(&mut store, "fill")?.call(&mut store, ())?;
        println!("{name} of {max}: the guest has {pages} pages, {} bytes", tenant.current());
        println!("    then {}", store.data().refusal().expect("it went on until it was refused"));
        drop(store);
        println!("    {} bytes after its store was dropped", tenant.current());
    }
    Ok(())
}
