//! Scenarios as text, one step a line, in the notation of the rules they come from.
//!
//! ```text
//! 100@8 -> 1:64                 100 bytes aligned to 8 are placed in chunk 1 at offset 64
//! atomic account 8@4 -> FAIL    the words of the flags, and a request that is refused
//! reserved 8@8 -> r:904         chunk r is the reserved one
//! f 2                           frees the area of the second request (they count from 1)
//! b                             balance work, asked for or not
//! fail populate 1               makes the next attempt to populate (or `create`) fail
//! c1 slot=12 contig=960@64      looks at chunk 1; c1.2 is its block 2
//! all empty=4 pending=0         looks at the totals
//! // text                       nothing; may also stand behind a step
//! ```
//!
//! A request, a free or balance work may end in ` + ` and its events, in order and joined by `, `:
//! `sched`, `create 2`, `destroy 2`, `populate 2 [0,4)`, `depopulate 2 [0,4)`, or `nothing`.
//! Without the plus sign the events are not compared. A run of granules, `contig=960@64`, is
//! compared with its start, and `contig=0` without. The structure is verified after each step.

use std::collections::VecDeque;

use percpu_memcg::placement::{
    BlockStats, ChunkName, ChunkStats, Event, Place, Profile, Regions, RequestFlags, Simulator,
};

/// The first chunk is one page; units have 8.
pub const ONE_PAGE: Regions = Regions { static_size: 28_672, reserved_size: 0, dyn_size: 4096 };
/// A reserved chunk of two pages, a first chunk of three, borders inside pages.
pub const ODD: Regions = Regions { static_size: 5000, reserved_size: 6000, dyn_size: 9480 };

/// A simulator and the areas of the requests that a script made of it so far.
pub struct Run {
    pub simulator: Simulator,
    places: Vec<Option<Place>>,
}

impl Run {
    pub fn new(unit_size: usize, regions: Regions, profile: Profile) -> Run {
        let simulator = Simulator::new(unit_size, regions, profile).expect("a legal layout");
        Run { simulator, places: Vec::new() }
    }

    /// Units of 32 KiB and a first chunk of one page, which one area fills: what follows goes to
    /// fresh chunks. The area has no number.
    pub fn behind_first_chunk(profile: Profile) -> Run {
        let mut run = Run::new(32 << 10, ONE_PAGE, profile);
        run.play("4096@4 -> 0:0");
        run.places.clear();
        run
    }

    /// Takes every step of `script`; panics at the first that turns out otherwise.
    #[track_caller]
    pub fn play(&mut self, script: &str) -> &mut Run {
        for line in script.lines() {
            let line = line.split("//").next().expect("one part at least").trim();
            let step = if line.is_empty() { Ok(()) } else { self.step(line) };
            let step = step.and_then(|()| self.simulator.placement().verify());
            if let Err(why) = step {
                panic!("`{line}`: {why}\n{}", self.describe());
            }
        }
        self
    }

    /// The place of the `number`-th request.
    pub fn place(&self, number: usize) -> Place {
        self.places[number - 1].expect("the request was served")
    }

    fn step(&mut self, line: &str) -> Result<(), String> {
        let (action, events) = match line.split_once(" + ") {
            Some((action, events)) => (action, Some(events)),
            None => (line, None),
        };
        let mut words: VecDeque<&str> = action.split_whitespace().collect();
        let first = words.pop_front().unwrap_or_default();
        match (first, words.make_contiguous()) {
            ("f", [number]) => {
                let place = self.places[self::number::<usize>(number) - 1];
                let place = place.ok_or("the request was refused")?;
                let size = self.simulator.free(place).map_err(|error| error.to_string())?;
                same("size", &place.size.to_string(), &size.to_string())?;
            }
            ("b", []) => self.simulator.balance(),
            ("fail", ["populate", count]) => self.simulator.fail_next_populates(number(count)),
            ("fail", ["create", count]) => self.simulator.fail_next_creates(number(count)),
            ("all", checks) => return self.check_totals(checks),
            (name, checks) if name.starts_with('c') => return self.check_chunk(&name[1..], checks),
            _ => self.request(action)?,
        }
        let got = self.simulator.take_events();
        match events {
            Some(expected) => same("events", expected, &describe_events(&got)),
            None => Ok(()),
        }
    }

    fn request(&mut self, action: &str) -> Result<(), String> {
        let (request, expected) = action.split_once(" -> ").ok_or("no such step")?;
        let mut flags = RequestFlags::default();
        let mut place = None;
        for word in request.split_whitespace() {
            match word {
                "atomic" => flags.atomic = true,
                "account" => flags.account = true,
                "reserved" => flags.reserved = true,
                _ => {
                    let (size, align) = word.split_once('@').ok_or("no such flag")?;
                    place = self.simulator.alloc(number(size), number(align), flags);
                }
            }
        }
        self.places.push(place);
        let got = place.map(|place| format!("{}:{}", place.chunk, place.offset));
        same("place", expected.trim(), &got.unwrap_or("FAIL".to_owned()))
    }

    fn check_totals(&self, checks: &[&str]) -> Result<(), String> {
        let stats = self.simulator.placement().stats();
        each_check(checks, |key| {
            Some(match key {
                "empty" => stats.empty_pop_pages.to_string(),
                "populated" => stats.nr_populated.to_string(),
                "chunks" => stats.nr_chunks.to_string(),
                "alloc" => stats.nr_alloc.to_string(),
                "dealloc" => stats.nr_dealloc.to_string(),
                "live" => stats.nr_cur_alloc.to_string(),
                "live_bytes" => stats.live_bytes.to_string(),
                "pending" => u8::from(stats.balance_pending).to_string(),
                _ => return None,
            })
        })
    }

    fn check_chunk(&self, name: &str, checks: &[&str]) -> Result<(), String> {
        let (name, block) = match name.split_once('.') {
            Some((name, block)) => (name, Some(number::<usize>(block))),
            None => (name, None),
        };
        let chunks = self.simulator.placement().chunks();
        let Some(chunk) = chunks.iter().find(|chunk| chunk.name.to_string() == name) else {
            return same("chunk", &checks.join(" "), "gone");
        };
        match block.map(|index| &chunk.blocks[index]) {
            None => each_check(checks, |key| chunk_value(chunk, key)),
            Some(block) => each_check(checks, |key| block_value(block, key)),
        }
    }

    fn describe(&self) -> String {
        let chunks = self.simulator.placement().chunks();
        let lines = chunks.iter().map(|chunk| {
            let keys = ["slot", "pos", "free", "contig", "scan", "first_free", "empty", "pages"];
            let values = keys.map(|key| format!(" {key}={}", chunk_value(chunk, key).unwrap()));
            format!("c{}{}\n", chunk.name, values.concat())
        });
        lines.collect()
    }
}

/// Plays a script behind a full first chunk with the habits of Linux 6.13.
#[track_caller]
pub fn play(script: &str) {
    Run::behind_first_chunk(Profile::LINUX_6_13).play(script);
}

fn chunk_value(chunk: &ChunkStats, key: &str) -> Option<String> {
    Some(match key {
        "slot" => chunk.slot.to_string(),
        "pos" => chunk.pos.to_string(),
        "chunk_type" => format!("{:?}", chunk.chunk_type),
        "free" => chunk.free_bytes.to_string(),
        "contig" => format!("{}@{}", chunk.contig_bits, chunk.contig_start),
        "scan" => format!("{}@{}", chunk.scan_bits, chunk.scan_start),
        "first_free" => chunk.first_free.to_string(),
        "empty" => chunk.nr_empty_pop_pages.to_string(),
        "isolated" => u8::from(chunk.isolated).to_string(),
        "live" => chunk.nr_alloc.to_string(),
        // One digit a page, from the first one on.
        "pages" => chunk.populated.iter().map(|&page| if page { '1' } else { '0' }).collect(),
        _ => return None,
    })
}

fn block_value(block: &BlockStats, key: &str) -> Option<String> {
    Some(match key {
        "contig" => format!("{}@{}", block.contig_bits, block.contig_start),
        "scan" => format!("{}@{}", block.scan_bits, block.scan_start),
        "left" => block.left_free.to_string(),
        "right" => block.right_free.to_string(),
        "first_free" => block.first_free.to_string(),
        _ => return None,
    })
}

fn each_check(checks: &[&str], value: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    for check in checks {
        let (key, expected) = check.split_once('=').ok_or("a check is `key=value`")?;
        let mut got = value(key).ok_or_else(|| format!("`{key}` is not known"))?;
        if expected == "0" {
            got.truncate(got.find('@').unwrap_or(got.len()));
        }
        same(key, expected, &got)?;
    }
    Ok(())
}

fn same(what: &str, expected: &str, got: &str) -> Result<(), String> {
    if expected == got { Ok(()) } else { Err(format!("{what}: expected {expected}, got {got}")) }
}

pub fn describe_events(events: &[Event]) -> String {
    let one = |event: &Event| {
        let pages = |what: &str, chunk: &ChunkName, pages: &std::ops::Range<usize>| {
            format!("{what} {chunk} [{},{})", pages.start, pages.end)
        };
        match event {
            Event::Sched => "sched".to_owned(),
            Event::Create(chunk) => format!("create {chunk}"),
            Event::Destroy(chunk) => format!("destroy {chunk}"),
            Event::Populate(chunk, range) => pages("populate", chunk, range),
            Event::Depopulate(chunk, range) => pages("depopulate", chunk, range),
        }
    };
    if events.is_empty() {
        return "nothing".to_owned();
    }
    events.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}
