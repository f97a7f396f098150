//! One operation, stopped and disturbed everywhere.

use percpu_memcg::this_cpu::{RegisteredBy, ThisCpu, Tier};

use crate::operations::{Answer, Operation};
use crate::plan::{Cpus, Disturbance, Plan, Tally, all_targets};
use crate::sequence::{Exit, Place, Sequence, find_used};
use crate::tracee::{Event, Tracee};

/// In the places of an answer that was not given.
const NO_ANSWER: u64 = 0xfeed_feed_feed_feed;

/// Around the copy, in the words of memory that it is in.
const NEIGHBOUR: u8 = 0xe7;
const WORD: u64 = 8;

/// Stops the operation at every instruction, and at every pair of them.
///
/// # Errors
///
/// What happened instead of what must.
pub(crate) fn everywhere(
    operation: &Operation,
    cpus: Cpus,
    tally: &mut Tally,
) -> Result<(), String> {
    (operation.call)(); // registers the thread's area, if that is up to the thread
    let tracee = Tracee::new(&operation.call)?;
    let watched = operation.copies.watched(cpus.all());
    let mut subject = Subject { operation, tracee, cpus, watched, contents: Vec::new() };
    for sequence in subject.find_sequences()? {
        subject.disturb(&sequence, tally)?;
        tally.sequences.insert(sequence.descriptor.start);
        tally.instructions.extend(sequence.inside());
        let missed: Vec<u64> =
            sequence.inside().filter(|at| !tally.aborted_at.contains(at)).collect();
        let always_misses = cpus.all().all(|cpu| operation.copies.lack(cpu));
        if !missed.is_empty() && !always_misses {
            return Err(format!("never aborted at {missed:x?}"));
        }
    }
    tally.operations += 1;
    Ok(())
}

/// What an undisturbed attempt does.
struct Outcome {
    after: Vec<u8>,
    answer: Answer,
    exit: Exit,
}

/// A traced child that carries out one operation, and what its memory must hold.
struct Subject<'a> {
    operation: &'a Operation,
    tracee: Tracee,
    cpus: Cpus,
    /// Copies.
    watched: Vec<u64>,
    /// For each of them.
    contents: Vec<Vec<u8>>,
}

impl Subject<'_> {
    /// The sequence that the operation uses. Where threads register their own areas, one that
    /// misses is followed by a second attempt, which has its own.
    fn find_sequences(&mut self) -> Result<Vec<Sequence>, String> {
        self.begin(&self.operation.starts[0][0])?;
        let used = find_used(&self.tracee)?;
        let by_us = Tier::Rseq { registered_by: RegisteredBy::Us };
        let is_retried = ThisCpu::tier() == by_us && self.operation.copies.lack(self.cpus.home);
        if used.len() == 1 + usize::from(is_retried) {
            used.into_iter().map(Sequence::new).collect()
        } else {
            Err(format!("uses these sequences: {used:x?}"))
        }
    }

    /// All stops and all pairs of them.
    fn disturb(&mut self, sequence: &Sequence, tally: &mut Tally) -> Result<(), String> {
        for targets in all_targets(sequence) {
            // In pairs, what an abort alone brings to light shows with updates as well: nothing
            // may have changed before them.
            let disturbances = match targets.len() {
                1 => &[Disturbance::Nothing, Disturbance::Update, Disturbance::Move][..],
                _ => &[Disturbance::Update, Disturbance::Move],
            };
            let can_move = self.cpus.away.is_some();
            let possible = |disturbance: &&_| can_move || **disturbance != Disturbance::Move;
            for &disturbance in disturbances.iter().filter(possible) {
                for starts in &self.operation.starts {
                    let plan = Plan { sequence, starts, disturbance, targets: &targets };
                    self.run(&plan, tally).map_err(|failure| format!("{plan}: {failure}"))?;
                }
            }
        }
        Ok(())
    }

    /// Carries out the operation once.
    fn run(&mut self, plan: &Plan<'_>, tally: &mut Tally) -> Result<(), String> {
        let mut cpu = self.cpus.home;
        let mut outcome = self.begin(&plan.starts[0])?;
        let mut is_over = false;
        // The stop that the child comes to next.
        let mut next = 0;
        match plan.targets.len() {
            1 => tally.singles += 1,
            _ => tally.pairs += 1,
        }
        for (&target, start) in plan.targets.iter().zip(&plan.starts[1..]) {
            let stop = plan.sequence.stops[target];
            let is_reached = target >= next && plan.sequence.comes_to(target, outcome.exit);
            // Where a sequence misses, the operation is not over at its end.
            if (stop.place, outcome.exit) == (Place::Behind, Exit::Miss) {
                tally.not_reached += 1;
                break;
            }
            let instruction = self.tracee.plant(stop.address)?;
            let event = self.tracee.proceed()?;
            self.tracee.restore(stop.address, instruction)?;
            match (event, is_reached) {
                (Event::Trap(at), true) if at == stop.address + 1 => {}
                (Event::Checkpoint, false) => {
                    tally.not_reached += 1;
                    return self.end(cpu, &outcome, is_over);
                }
                (Event::Checkpoint, true) => return Err("the stop was not reached".into()),
                (Event::Trap(at), _) => return Err(format!("came to {at:#x} - 1")),
            }
            self.tracee.jump(stop.address)?;

            is_over = stop.place == Place::Behind;
            if is_over {
                self.commit(cpu, &outcome).map_err(|failure| format!("at the end, {failure}"))?;
            } else {
                self.check().map_err(|failure| format!("before the end, {failure}"))?;
            }
            if plan.disturbance == Disturbance::Move {
                cpu = self.cpus.other(cpu);
                self.tracee.move_to(cpu)?;
            }
            if plan.disturbance != Disturbance::Nothing {
                self.fill(cpu, start)?;
                if !is_over {
                    outcome = self.predict(cpu, start);
                }
            }

            let stepped = self.tracee.step()?;
            let is_aborted = plan.sequence.is_abort(stepped);
            match (stop.place, is_aborted) {
                (Place::Inside, true) => {
                    tally.aborts += 1;
                    tally.aborted_at.insert(stop.address);
                    next = 0;
                }
                (Place::Before | Place::Behind, false) => {
                    tally.harmless += 1;
                    // The step may have entered the sequence, and it stops as well.
                    let entered = plan.sequence.inside().any(|at| stepped == Event::Trap(at));
                    next = if entered { 0 } else { target + 1 };
                }
                (Place::Inside, false) => return Err(format!("not aborted: {stepped:x?}")),
                (place, true) => return Err(format!("aborted {place:?} the sequence")),
            }
        }
        match self.tracee.proceed()? {
            Event::Checkpoint => self.end(cpu, &outcome, is_over),
            Event::Trap(at) => Err(format!("trap at {at:#x}")),
        }
    }

    /// Prepares the child for its next operation.
    fn begin(&mut self, start: &[u8]) -> Result<Outcome, String> {
        let no_answer = [NO_ANSWER; 2].map(u64::to_le_bytes);
        self.tracee.memory.write(self.answer(), no_answer.as_flattened())?;
        self.tracee.move_to(self.cpus.home)?;
        self.fill(self.cpus.home, start)?;
        Ok(self.predict(self.cpus.home, start))
    }

    /// Compares what the operation did with what it must do.
    fn end(&mut self, cpu: usize, outcome: &Outcome, is_over: bool) -> Result<(), String> {
        if is_over {
            self.check()?;
        } else {
            self.commit(cpu, outcome)?;
        }
        let answer = self.tracee.memory.read(self.answer(), 16)?;
        let expected = [u64::from(outcome.answer.0), outcome.answer.1];
        if answer == expected.map(u64::to_le_bytes).as_flattened() {
            Ok(())
        } else {
            Err(format!("answer {answer:02x?}, not {expected:x?}"))
        }
    }

    fn answer(&self) -> u64 {
        (&raw const *self.operation.answer) as u64
    }

    fn predict(&self, cpu: usize, start: &[u8]) -> Outcome {
        let (after, answer) = (self.operation.model)(start);
        let exit = match (self.operation.copies.lack(cpu), answer.0) {
            (true, _) => Exit::Miss,
            (false, true) => Exit::Commit,
            (false, false) => Exit::Refuse,
        };
        Outcome { after, answer, exit }
    }

    /// Updates the copy of a CPU, or all where it is not known, and spoils the others.
    fn fill(&mut self, cpu: usize, content: &[u8]) -> Result<(), String> {
        let own = self.operation.copies.of_cpu(cpu);
        let content_of = |copy: &u64| match own.is_none_or(|own| own == *copy) {
            true => content.to_vec(),
            false => self.operation.decoy.clone(),
        };
        self.contents = self.watched.iter().map(content_of).collect();
        for (&copy, content) in self.watched.iter().zip(&self.contents) {
            let (window, bytes) = with_neighbours(copy, content);
            self.tracee.memory.write(window, &bytes)?;
        }
        Ok(())
    }

    /// From now on one copy has to hold what the operation leaves.
    fn commit(&mut self, cpu: usize, outcome: &Outcome) -> Result<(), String> {
        let own = match self.operation.copies.of_cpu(cpu) {
            Some(copy) => self.watched.iter().position(|watched| *watched == copy),
            None => self.find_change()?,
        };
        if let Some(own) = own {
            self.contents[own].clone_from(&outcome.after);
        }
        // Where none has changed, it is an error unless nothing had to.
        let is_left = self.contents.contains(&outcome.after);
        if is_left { self.check() } else { Err("nothing was changed".into()) }
    }

    /// The first copy that has changed.
    fn find_change(&self) -> Result<Option<usize>, String> {
        for (index, (&copy, content)) in self.watched.iter().zip(&self.contents).enumerate() {
            let (found, expected) = self.compare(copy, content)?;
            if found != expected {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Every copy holds what it must, and so do its neighbours.
    fn check(&self) -> Result<(), String> {
        for (&copy, content) in self.watched.iter().zip(&self.contents) {
            let (found, expected) = self.compare(copy, content)?;
            if found != expected {
                return Err(format!("copy at {copy:#x}: {found:02x?}, not {expected:02x?}"));
            }
        }
        Ok(())
    }

    fn compare(&self, copy: u64, content: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
        let (window, expected) = with_neighbours(copy, content);
        let mut found = self.tracee.memory.read(window, expected.len())?;
        if let Some(own) = found.get_mut((copy - window) as usize..) {
            (self.operation.clear_unread)(own);
        }
        Ok((found, expected))
    }
}

/// The words of memory that a copy is in: address and bytes.
fn with_neighbours(copy: u64, content: &[u8]) -> (u64, Vec<u8>) {
    let window = copy - copy % WORD;
    let end = (copy + content.len() as u64).next_multiple_of(WORD);
    let mut bytes = vec![NEIGHBOUR; (end - window) as usize];
    let first = (copy - window) as usize;
    bytes[first..first + content.len()].copy_from_slice(content);
    (window, bytes)
}
