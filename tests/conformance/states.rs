//! Compares recorded states with those of the simulator, value by value.

use percpu_memcg::placement::{AllocInfo, ChunkStats, ChunkType, Placement, Stats};
use percpu_memcg::report::Snapshot;

use crate::corpus::Mismatch;
use crate::placement::label;
use crate::recording::{ChunkLine, Fields, State};

/// Compares a whole state: totals, every chunk line, and the numbers of the report.
pub fn compare(
    line: u64,
    state: &State,
    placement: &Placement,
    layout: &AllocInfo,
    profile: char,
) -> Result<(), Mismatch> {
    compare_totals(line, &state.fields, placement)?;
    let chunks = placement.chunks();
    for recorded in &state.chunks {
        let Some(chunk) = chunks.iter().find(|chunk| label(chunk.name) == recorded.name) else {
            let names: Vec<_> = chunks.iter().map(|chunk| chunk.name.to_string()).collect();
            let expected = format!("chunk {}", recorded.name);
            return Err(Mismatch::new(recorded.line, expected, format!("only {names:?}")));
        };
        compare_chunk(recorded, chunk, profile)?;
    }
    if chunks.len() != state.chunks.len() {
        let expected = format!("{} chunks", state.chunks.len());
        return Err(Mismatch::new(line, expected, chunks.len()));
    }
    compare_report(line, &state.report, &Snapshot::of_placement(placement, layout))
}

/// Compares the values of the allocator as a whole that a state or a checkpoint gives.
pub fn compare_totals(line: u64, fields: &Fields, placement: &Placement) -> Result<(), Mismatch> {
    let stats = placement.stats();
    compare_fields(line, "", fields, |key| total(key, &stats))
}

fn total(key: &str, stats: &Stats) -> Option<String> {
    let value = match key {
        "nr_alloc" => stats.nr_alloc,
        "nr_dealloc" => stats.nr_dealloc,
        "nr_cur_alloc" => stats.nr_cur_alloc,
        "nr_max_alloc" => stats.nr_max_alloc,
        "nr_chunks" => stats.nr_chunks,
        "nr_max_chunks" => stats.nr_max_chunks,
        "min_alloc_size" => stats.min_alloc_size,
        "max_alloc_size" => stats.max_alloc_size,
        "empty_pop_pages" => stats.empty_pop_pages,
        "nr_populated" => stats.nr_populated,
        "balance_pending" => u64::from(stats.balance_pending),
        _ => return None,
    };
    Some(value.to_string())
}

fn compare_chunk(recorded: &ChunkLine, chunk: &ChunkStats, profile: char) -> Result<(), Mismatch> {
    let what = format!("chunk {}: ", recorded.name);
    // A start says nothing while its size is 0.
    let has_no_meaning = |key: &str| match key {
        "contig_start" => chunk.contig_bits == 0,
        "scan_start" => chunk.scan_bits == 0,
        _ => false,
    };
    let fields = recorded.fields.iter().filter(|(key, _)| !has_no_meaning(key)).cloned().collect();
    compare_fields(recorded.line, &what, &fields, |key| {
        Some(match key {
            "type" => kind(chunk, profile).to_owned(),
            "slot" => chunk.slot.to_string(),
            "pos" => chunk.pos.to_string(),
            "free_bytes" => chunk.free_bytes.to_string(),
            "contig_bits" => chunk.contig_bits.to_string(),
            "contig_start" => chunk.contig_start.to_string(),
            "scan_bits" => chunk.scan_bits.to_string(),
            "scan_start" => chunk.scan_start.to_string(),
            "first_free" => chunk.first_free.to_string(),
            "nr_pages" => chunk.nr_pages.to_string(),
            "nr_populated" => chunk.nr_populated.to_string(),
            "nr_empty_pop_pages" => chunk.nr_empty_pop_pages.to_string(),
            "isolated" => u8::from(chunk.isolated).to_string(),
            "nr_alloc" => chunk.nr_alloc.to_string(),
            "max_alloc_size" => chunk.max_alloc_size.to_string(),
            "populated" => page_list(&chunk.populated),
            _ => return None,
        })
    })
}

fn kind(chunk: &ChunkStats, profile: char) -> &'static str {
    match chunk.chunk_type {
        None => "reserved",
        Some(_) if profile == 'A' => "any",
        Some(ChunkType::Plain) => "plain",
        Some(ChunkType::Accounted) => "accounted",
    }
}

/// Page ranges `a-b`, both included, joined by `+`.
fn page_list(populated: &[bool]) -> String {
    let mut ranges = Vec::new();
    let mut page = 0;
    for run in populated.chunk_by(|a, b| a == b) {
        if run[0] {
            ranges.push(format!("{page}-{}", page + run.len() - 1));
        }
        page += run.len();
    }
    if ranges.is_empty() { "none".to_owned() } else { ranges.join("+") }
}

fn compare_fields(
    line: u64,
    what: &str,
    fields: &Fields,
    got: impl Fn(&str) -> Option<String>,
) -> Result<(), Mismatch> {
    for (key, expected) in fields {
        let got = got(key).unwrap_or_else(|| "a key that nothing is known of".to_owned());
        if got != *expected {
            return Err(Mismatch::new(line, format!("{what}{key}={expected}"), got));
        }
    }
    Ok(())
}

/// Compares the text of the kernel's `percpu_stats`, which is recorded without its empty lines.
fn compare_report(line: u64, report: &[String], snapshot: &Snapshot) -> Result<(), Mismatch> {
    if report.is_empty() {
        return Ok(());
    }
    let text = snapshot.to_string();
    let got: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    for (recorded, got) in report.iter().zip(&got) {
        if recorded != got {
            return Err(Mismatch::new(line, format!("report: {recorded}"), got));
        }
    }
    if report.len() != got.len() {
        return Err(Mismatch::new(line, format!("{} lines of report", report.len()), got.len()));
    }
    Ok(())
}
