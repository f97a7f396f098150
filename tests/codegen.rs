//! What an operation on this CPU's copy costs in a caller's crate, in instructions.
//!
//! The example `this_cpu` has the function `hit(hits: &PerCpu<Local<u64>>, n: u64)`, which does
//! nothing but `hits.add(n)`. What it should compile to:
//!
//! ```text
//!     mov   area, [hits]              ┐ three words of the object: where the thread's area is,
//!     mov   first, [hits + 24]        ┘ where the copies are, and (below) how many
//!     lea   t, [descriptor]           ┐ the sequence
//!     mov   fs:[area + 8], t          │
//!     imul  t, fs:[area + 4], STRIDE  │
//!     cmp   t, [hits + 16]            │
//!     jae   miss                      │
//!     add   [first + t], n            ┘
//!     ret
//! ```
//!
//! It is so in every profile that optimises at all. The test looks at the `dev` profile, or at
//! `release` if it is built in that.

#![cfg(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64", not(miri)))]

#[path = "common/example.rs"]
mod example;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSection, ObjectSymbol};

/// Instructions from the entry to the return, which does not count.
const MAX_INSTRUCTIONS: usize = 8;

/// The instructions of a function.
fn instructions(program: &Path, function: &str) -> Vec<Instruction> {
    let bytes = fs::read(program).expect("the example's file");
    let file = object::File::parse(&*bytes).expect("an object file");
    let symbol = file.symbol_by_name(function).expect("a symbol, unless the profile strips them");
    let section = symbol.section_index().expect("a function that is defined here");
    let section = file.section_by_index(section).expect("the section of a symbol");
    let code = section.data_range(symbol.address(), symbol.size()).expect("a section with data");
    let code = code.expect("a function within its section");
    Decoder::with_ip(64, code, symbol.address(), DecoderOptions::NONE).iter().collect()
}

/// What runs when no branch is taken, the return not included; `None` when there is no return.
fn fast_path(function: &[Instruction]) -> Option<Vec<Instruction>> {
    let mut path = Vec::new();
    let mut next = function.first()?.ip();
    // A loop never returns.
    while path.len() <= function.len() {
        let instruction = function.iter().find(|instruction| instruction.ip() == next)?;
        next = match instruction.flow_control() {
            FlowControl::Return => return Some(path),
            FlowControl::UnconditionalBranch => instruction.near_branch_target(),
            _ => instruction.next_ip(),
        };
        path.push(*instruction);
    }
    None
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall | FlowControl::Interrupt
    ) || instruction.code() == Code::Syscall
}

/// With the prefix, or as exchanges with memory are without.
fn is_locked(instruction: &Instruction) -> bool {
    let in_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    instruction.has_lock_prefix() || (instruction.mnemonic() == Mnemonic::Xchg && in_memory)
}

fn is_conditional(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::ConditionalBranch
}

/// What speaks against a fast path.
fn objections(path: &[Instruction]) -> Vec<String> {
    let count = |is: fn(&Instruction) -> bool| path.iter().filter(|it| is(it)).count();
    let (calls, locked, branches) = (count(is_call), count(is_locked), count(is_conditional));
    [
        (path.len() > MAX_INSTRUCTIONS, format!("more than {MAX_INSTRUCTIONS} instructions")),
        (calls > 0, format!("{calls} calls")),
        (locked > 0, format!("{locked} atomic instructions")),
        (branches != 1, format!("{branches} conditional branches instead of one, the miss")),
    ]
    .into_iter()
    .filter_map(|(is_true, objection)| is_true.then_some(objection))
    .collect()
}

#[test]
fn add_is_eight_instructions_in_a_callers_crate() {
    if std::env::var("LD_PRELOAD").is_ok_and(|libraries| libraries.contains("vgpreload")) {
        println!("codegen: skipped: valgrind, which translates instructions");
        return;
    }
    let program = example::built("this_cpu", "this_cpu");
    let function = instructions(&program, "hit");
    let listing = function.iter().fold(String::new(), |mut listing, instruction| {
        let _ = writeln!(listing, "  {:#x}: {:?}", instruction.ip(), instruction.code());
        listing
    });
    let path = fast_path(&function).unwrap_or_else(|| panic!("`hit` does not return:\n{listing}"));
    println!("codegen: {} instructions and the return, in {}", path.len(), program.display());
    let objections = objections(&path).join(", ");
    assert!(
        objections.is_empty(),
        "`hit` has {objections}. Is it built without optimisation?\n{listing}"
    );
}
