//! All interleavings of pushes, pops and a drain, instruction by instruction.
//!
//! Two threads take turns on one CPU, each of which pops an area and pushes it again. A third one, on
//! another CPU, drains that CPU's list. A thread that comes back to its CPU inside a sequence starts it
//! over, and so does every thread inside one at a fence. What is checked in every state: each area is in
//! one place.

use std::collections::BTreeSet;

/// Areas are 1 to 3; 0 is none.
const AREAS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Pop,
    Push,
    Done,
}

/// Where a thread is in a sequence, and its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Thread {
    work: Work,
    /// The next instruction: 0 compares the gate, 3 commits.
    at: u8,
    head: u8,
    next: u8,
    /// The area that the thread has.
    has: u8,
    /// Pops that it still has to do.
    left: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    head: u8,
    link: [u8; AREAS as usize + 1],
    is_open: bool,
    threads: [Thread; 2],
    /// Which of them is on the CPU.
    running: usize,
    /// The next step of the drain, and what it has found.
    drain: u8,
    found: u8,
}

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// The drain does not wait for sequences under way.
    Fence,
    /// The drain does not shut the gate.
    Gate,
    /// A thread that was preempted goes on where it was.
    Restart,
}

impl Thread {
    fn begin(work: Work, has: u8, left: u8) -> Self {
        Thread { work, at: 0, head: 0, next: 0, has, left }
    }

    /// One instruction.
    fn step(&mut self, head: &mut u8, link: &mut [u8], is_open: bool) {
        let after_pop = |has, left: u8| match (has, left) {
            (0, 0) => Thread::begin(Work::Done, 0, 0),
            (0, _) => Thread::begin(Work::Pop, 0, left - 1),
            _ => Thread::begin(Work::Push, has, left),
        };
        match (self.work, self.at) {
            (Work::Done, _) => {}
            // A closed gate: the area goes to the placement, where nobody takes it in this model.
            (Work::Pop, 0) if !is_open => *self = after_pop(0, self.left),
            (Work::Push, 0) if !is_open => *self = Thread::begin(Work::Done, self.has, 0),
            (_, 0) => self.at = 1,
            (_, 1) => {
                self.head = *head;
                self.at = 2;
                if self.work == Work::Pop && self.head == 0 {
                    *self = after_pop(0, self.left);
                }
            }
            (Work::Pop, 2) => {
                self.next = link[self.head as usize];
                self.at = 3;
            }
            (Work::Push, 2) => {
                link[self.has as usize] = self.head;
                self.at = 3;
            }
            (Work::Pop, _) => {
                *head = self.next;
                *self = after_pop(self.head, self.left);
            }
            (Work::Push, _) => {
                *head = self.has;
                *self = match self.left {
                    0 => Thread::begin(Work::Done, 0, 0),
                    left => Thread::begin(Work::Pop, 0, left - 1),
                };
            }
        }
    }
}

impl State {
    fn start() -> Self {
        let thread = Thread::begin(Work::Pop, 0, 1);
        let link = [0, 0, 1, 2];
        let threads = [thread; 2];
        State { head: AREAS, link, is_open: true, threads, running: 0, drain: 0, found: 0 }
    }

    fn successors(&self, without: Without) -> Vec<State> {
        let mut all = Vec::new();
        let mut next = *self;
        let thread = &mut next.threads[next.running];
        thread.step(&mut next.head, &mut next.link, next.is_open);
        all.push(next);

        let mut next = *self;
        next.running = 1 - next.running;
        if without != Without::Restart {
            next.threads[next.running].at = 0;
        }
        all.push(next);

        let mut next = *self;
        match self.drain {
            0 => next.is_open = without == Without::Gate,
            1 if without != Without::Fence => {
                next.threads.iter_mut().for_each(|thread| thread.at = 0);
            }
            2 => next.found = self.head,
            3 => next.head = 0,
            4 => next.is_open = true,
            _ => {}
        }
        next.drain = (self.drain + 1).min(5);
        all.push(next);
        all
    }

    /// Each area is on the list, with a thread, or with the drain; `None` while the drain is taking them.
    fn places(&self) -> Option<Vec<u8>> {
        if self.drain == 3 {
            return None;
        }
        let mut places: Vec<u8> = self.threads.iter().map(|thread| thread.has).collect();
        for mut area in [self.head, self.found] {
            // A list that goes round is longer than there are areas.
            while area != 0 && places.len() < 20 {
                places.push(area);
                area = self.link[area as usize];
            }
        }
        places.retain(|area| *area != 0);
        places.sort_unstable();
        Some(places)
    }
}

/// Looks at every state that can be reached. Returns how many there are, or one that is wrong.
fn explore(without: Without) -> Result<usize, State> {
    let mut seen = BTreeSet::from([State::start()]);
    let mut open = vec![State::start()];
    while let Some(state) = open.pop() {
        if state.places().is_some_and(|places| places != [1, 2, 3]) {
            return Err(state);
        }
        open.extend(state.successors(without).into_iter().filter(|next| seen.insert(*next)));
    }
    Ok(seen.len())
}

#[test]
fn each_area_is_in_one_place_in_every_interleaving() {
    let states = explore(Without::Nothing).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

#[test]
fn without_one_of_the_rules_an_area_is_lost_or_doubled() {
    for without in [Without::Fence, Without::Gate, Without::Restart] {
        explore(without).expect_err(&format!("without {without:?}"));
    }
}
