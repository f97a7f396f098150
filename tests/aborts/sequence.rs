//! Where sequences are, and their instructions: read from the memory of this process, which a
//! forked child has at the same addresses.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::tracee::{Event, Memory, Tracee};

/// Bytes of a descriptor, in the order of its fields: version, flags, start, length, abort handler.
const DESCRIPTOR: usize = 32;

/// Before a sequence: its descriptor is put into the area by two instructions.
const MAX_PRELUDE: u64 = 32;

/// The longest abort handler that is understood, in instructions.
const MAX_HANDLER: usize = 8;

// The section's name is one that the linker makes symbols for: its first byte, and the one behind.
unsafe extern "C" {
    #[link_name = "__start___rseq_cs"]
    static FIRST: u8;
    #[link_name = "__stop___rseq_cs"]
    static BEHIND: u8;
}

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Descriptor {
    pub(crate) start: u64,
    end: u64,
    abort: u64,
}

impl Descriptor {
    /// All there are in this program, used or not.
    pub(crate) fn all() -> Vec<Self> {
        let (first, behind) = ((&raw const FIRST) as u64, (&raw const BEHIND) as u64);
        let bytes = Memory::own().read(first, (behind - first) as usize);
        let bytes = bytes.expect("memory of this process");
        let field = |descriptor: &[u8], at| {
            u64::from_le_bytes(descriptor[at..at + 8].try_into().expect("8 bytes"))
        };
        let read = |descriptor: &[u8]| {
            let [zero, start, length, abort] = [0, 8, 16, 24].map(|at| field(descriptor, at));
            assert_eq!(zero, 0, "version and flags");
            Descriptor { start, end: start + length, abort }
        };
        bytes.chunks(DESCRIPTOR).map(read).collect()
    }
}

/// The sequences that a child at a checkpoint uses on its way to the next one, in that order.
pub(crate) fn find_used(tracee: &Tracee) -> Result<Vec<Descriptor>, String> {
    let mut descriptors = Descriptor::all();
    descriptors.sort_unstable();
    descriptors.dedup();
    let plant = |descriptor: &Descriptor| tracee.plant(descriptor.start);
    let found: Vec<u64> = descriptors.iter().map(plant).collect::<Result<_, _>>()?;
    let mut used = Vec::new();
    loop {
        match tracee.proceed()? {
            Event::Checkpoint => break,
            Event::Trap(at) => {
                let is_hit = |descriptor: &Descriptor| descriptor.start + 1 == at;
                let hit = descriptors.iter().position(is_hit);
                let hit = hit.ok_or_else(|| format!("trap at {at:#x}"))?;
                tracee.restore(descriptors[hit].start, found[hit])?;
                tracee.jump(descriptors[hit].start)?;
                used.push(descriptors[hit]);
            }
        }
    }
    for (descriptor, found) in descriptors.iter().zip(found) {
        tracee.restore(descriptor.start, found)?;
    }
    Ok(used)
}

/// Where a stop is, and thereby what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The descriptor is not in the area yet, or the sequence did not begin.
    Before,
    /// The kernel has to send the thread to the abort handler.
    Inside,
    /// It is over.
    Behind,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With the last instruction.
    Commit,
    /// With the last branch: the sequence found that it must not commit.
    Refuse,
    /// With the first branch: there is no copy for this CPU.
    Miss,
}

/// An instruction to stop at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) address: u64,
    pub(crate) place: Place,
    /// Where it may jump to.
    branch: Option<u64>,
}

/// A sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) descriptor: Descriptor,
    /// From the first instruction of a new attempt to the one behind the end.
    pub(crate) stops: Vec<Stop>,
    /// Where a thread may be after one step from inside of the sequence.
    after_abort: Vec<u64>,
}

/// The instructions from `first` to `end`; one that reaches beyond it is invalid.
fn instructions(first: u64, end: u64) -> Result<Vec<Instruction>, String> {
    let bytes = Memory::own().read(first, (end - first) as usize)?;
    let mut decoder = Decoder::with_ip(64, &bytes, first, DecoderOptions::NONE);
    Ok(decoder.iter().collect())
}

/// False for what does anything in a rseq area but store `rseq_cs` or load one of the ids: nothing
/// else may be written, and `cpu_id_start` is no id before the kernel has looked at it.
fn leaves_area_alone(instruction: &Instruction) -> bool {
    const ID: u64 = 4; // of the CPU, or by concurrency if the register says so
    const RSEQ_CS: u64 = 8;
    let has_memory =
        (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    if !has_memory || instruction.memory_segment() != Register::FS {
        return true;
    }
    let (mnemonic, place) = (instruction.mnemonic(), instruction.memory_displacement64());
    let is_store = instruction.op_kind(0) == OpKind::Memory;
    match (mnemonic, is_store) {
        (Mnemonic::Mov, true) => place == RSEQ_CS,
        (Mnemonic::Imul | Mnemonic::Mov, false) => place == ID,
        _ => false,
    }
}

impl Sequence {
    /// Reads the instructions.
    ///
    /// # Errors
    ///
    /// When they do not end where the descriptor says, or the abort handler jumps nowhere.
    pub(crate) fn new(descriptor: Descriptor) -> Result<Self, String> {
        let Descriptor { start, end, abort } = descriptor;
        let handler = instructions(abort, abort + 15 * MAX_HANDLER as u64)?;
        let jumps = |instruction: &Instruction| {
            instruction.flow_control() == FlowControl::UnconditionalBranch
        };
        let end_of_handler = handler.iter().take(MAX_HANDLER).position(jumps);
        let handler = &handler[..=end_of_handler.ok_or("no jump in the abort handler")?];
        let target = |instruction: &Instruction| match instruction.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                Some(instruction.near_branch_target())
            }
            _ => None,
        };
        let next = (!jumps(&handler[0])).then(|| handler[0].next_ip());
        let after_abort = target(&handler[0]).into_iter().chain(next).collect();
        let prelude = start.saturating_sub(MAX_PRELUDE)..start;
        let restart = handler.iter().filter_map(target).find(|target| prelude.contains(target));
        let first = restart.unwrap_or(start);
        let stop = |instruction: &Instruction| Stop {
            address: instruction.ip(),
            place: if instruction.ip() < start { Place::Before } else { Place::Inside },
            branch: (instruction.flow_control() == FlowControl::ConditionalBranch)
                .then(|| instruction.near_branch_target()),
        };
        let instructions = instructions(first, end)?;
        let are_whole = instructions.iter().any(|instruction| instruction.ip() == start)
            && !instructions.iter().any(Instruction::is_invalid);
        if !are_whole {
            return Err(format!("start or end is within an instruction: {descriptor:x?}"));
        }
        if let Some(strange) =
            instructions.iter().find(|instruction| !leaves_area_alone(instruction))
        {
            return Err(format!("{strange:?} in the area of the thread: {descriptor:x?}"));
        }
        let mut stops: Vec<Stop> = instructions.iter().map(stop).collect();
        stops.push(Stop { address: end, place: Place::Behind, branch: None });
        Ok(Sequence { descriptor, stops, after_abort })
    }

    /// True when a step from inside of the sequence that ended so was the first of the abort handler.
    pub(crate) fn is_abort(&self, step: Event) -> bool {
        matches!(step, Event::Trap(at) if self.after_abort.contains(&at))
    }

    /// True when an attempt that starts at the first stop and ends in this way comes to that one.
    pub(crate) fn comes_to(&self, stop: usize, exit: Exit) -> bool {
        let branches = || self.stops.iter().enumerate().filter(|(_, stop)| stop.branch.is_some());
        let taken = match exit {
            Exit::Commit => return true,
            Exit::Refuse => branches().next_back(),
            Exit::Miss => branches().next(),
        };
        let Some((last, taken)) = taken else { return true };
        stop <= last || taken.branch == Some(self.stops[stop].address)
    }

    /// Where its instructions are.
    pub(crate) fn inside(&self) -> impl Iterator<Item = u64> {
        let inside = self.stops.iter().filter(|stop| stop.place == Place::Inside);
        inside.map(|stop| stop.address)
    }
}
