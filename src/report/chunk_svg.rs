//! A map of chunks as a picture.
//!
//! ```text
//!   heading, and what is in use
//!   legend: colour, path, bytes, share        two columns
//!   chunk 0 · what is in it
//!      0 ▆▆▆▆▆▆▆ ▆▆▆   ▆▆▆▆▆▆        a row: 512 cells
//!   64 K ▆▆  ▆▆▆▆▆▆▆▆▆
//! ```
//!
//! Neighbouring cells of one colour are one rectangle, and all rectangles of a colour in a chunk are one
//! path.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::chunk_map::{AreaOwner, CELLS_OF_ROW, Cell, ChunkMap, MappedChunk};
use crate::placement::{ChunkName, ChunkType};
use crate::sys::text::{Bytes, Short};

/// Cgroups with a colour of their own.
const COLOURS: usize = 10;

/// Pixels.
const WIDTH: usize = 1136;
const MARGIN: usize = 24;
const LEFT: usize = MARGIN + 64;
const CELL: usize = 2;
const ROW: usize = 8;
const LINE: usize = 20;

/// Characters of a path in the legend: what the column has room for.
const PATH: usize = 44;

const STYLE: &str = "
svg{--back:#fff;--text:#1f2328;--dim:#59636e;--free:#dfe4ea;--rest:#57606a;--none:#9aa4af;--line:#d1d9e0}
.c0{fill:#3b76b5}.c1{fill:#e8842c}.c2{fill:#3f9a4a}.c3{fill:#d6485a}.c4{fill:#8b63b8}
.c5{fill:#1fa3a3}.c6{fill:#c9a21b}.c7{fill:#d673ab}.c8{fill:#8c6346}.c9{fill:#93a63a}
@media (prefers-color-scheme:dark){
svg{--back:#0d1117;--text:#e6edf3;--dim:#9198a1;--free:#2b323b;--rest:#b1bac4;--none:#6e7681;--line:#3d444d}
.c0{fill:#539bf5}.c1{fill:#f0984a}.c2{fill:#57b561}.c3{fill:#ef6f7d}.c4{fill:#a98bdb}}
text{font:12px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:var(--text)}
.h{font-size:16px;font-weight:600}.d{fill:var(--dim)}.e{text-anchor:end}.b{fill:var(--back)}
.rest{fill:var(--rest)}.none{fill:var(--none)}.kept{fill:url(#kept)}.free{fill:var(--free)}
.out{fill:none;stroke:var(--line)}.k0{stroke:var(--none);stroke-width:2}
path{shape-rendering:crispEdges}
";

impl ChunkMap {
    /// The map as an SVG picture, for a browser or a page. It follows the reader's choice of light or dark.
    ///
    /// The ten cgroups with most bytes have a colour each. A cgroup keeps its colour from one picture to the
    /// next as long as these are the same ten. The picture shows at most 256 chunks, and has less than 2 MiB
    /// whatever there is.
    pub fn to_svg(&self) -> String {
        let mut text = String::new();
        let _fits = Picture::of(self).write(&mut text);
        text
    }
}

/// What has a colour and a line in the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ink {
    Owner(usize),
    OtherOwners,
    Uncharged,
    Cached,
    Free,
    Unpopulated,
}

struct Picture<'a> {
    map: &'a ChunkMap,
    /// The colours of the first owners.
    colours: Vec<usize>,
}

impl<'a> Picture<'a> {
    fn of(map: &'a ChunkMap) -> Self {
        let shown = &map.owners[..map.owners.len().min(COLOURS)];
        // Each has the colour that its path asks for, or the next one that is not taken.
        let mut by_path: Vec<usize> = (0..shown.len()).collect();
        by_path.sort_by_key(|owner| &shown[*owner].path);
        let (mut colours, mut is_taken) = (vec![0; shown.len()], [false; COLOURS]);
        for owner in by_path {
            let hash = shown[owner].path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
            let mut colour = (hash >> 32) as usize % COLOURS;
            while is_taken[colour] {
                colour = (colour + 1) % COLOURS;
            }
            is_taken[colour] = true;
            colours[owner] = colour;
        }
        Picture { map, colours }
    }

    fn ink(&self, cell: Cell) -> Option<Ink> {
        Some(match cell {
            Cell::Unmanaged | Cell::Unpopulated => return None,
            Cell::Free => Ink::Free,
            Cell::Cached => Ink::Cached,
            Cell::Uncharged => Ink::Uncharged,
            Cell::Owner(owner) if owner < self.colours.len() => Ink::Owner(owner),
            Cell::Owner(_) => Ink::OtherOwners,
        })
    }

    fn class(&self, ink: Ink) -> String {
        match ink {
            Ink::Owner(owner) => format!("c{}", self.colours[owner]),
            Ink::OtherOwners => "rest".into(),
            Ink::Uncharged => "none".into(),
            Ink::Cached => "kept".into(),
            Ink::Free => "free".into(),
            Ink::Unpopulated => "out".into(),
        }
    }

    fn others(&self) -> &[AreaOwner] {
        &self.map.owners[self.colours.len()..]
    }

    fn name(&self, ink: Ink) -> String {
        match ink {
            Ink::Owner(owner) => shortened(&self.map.owners[owner].path),
            Ink::OtherOwners => format!("{} other cgroups", self.others().len()),
            Ink::Uncharged => "charged to no cgroup".into(),
            Ink::Cached => "freed, kept by a CPU".into(),
            Ink::Free => "free, populated".into(),
            Ink::Unpopulated => "not populated".into(),
        }
    }

    /// The bytes in a copy, where they are counted.
    fn bytes(&self, ink: Ink) -> Option<u64> {
        match ink {
            Ink::Owner(owner) => Some(self.map.owners[owner].bytes),
            Ink::OtherOwners => Some(self.others().iter().map(|owner| owner.bytes).sum()),
            Ink::Uncharged => Some(self.map.uncharged_bytes),
            Ink::Cached => Some(self.map.cached_bytes),
            Ink::Free | Ink::Unpopulated => None,
        }
    }

    fn legend(&self) -> Vec<Ink> {
        let owners = (0..self.colours.len()).map(Ink::Owner);
        let others = (!self.others().is_empty()).then_some(Ink::OtherOwners);
        let rest = [Ink::Uncharged, Ink::Cached, Ink::Free, Ink::Unpopulated];
        owners.chain(others).chain(rest).collect()
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let legend = self.legend();
        let lines = legend.len().div_ceil(2);
        let chunks_from = MARGIN + 3 * LINE + lines * LINE + LINE;
        let hidden = self.map.nr_chunks - self.map.chunks.len();
        let chunks: usize =
            self.map.chunks.iter().map(|chunk| rows_of(chunk) * ROW + 2 * LINE).sum();
        let height = chunks_from + chunks + if hidden > 0 { LINE } else { 0 } + MARGIN;
        write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
             <title>Chunks of per-CPU memory by cgroup</title>\n<style>{STYLE}</style>\n\
             <defs><pattern id=\"kept\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" class=\"free\"/>\
             <path class=\"k0\" d=\"M1 0v6\"/></pattern></defs>\n\
             <rect class=\"b\" width=\"100%\" height=\"100%\"/>\n"
        )?;
        self.write_heading(out)?;
        self.write_legend(out, &legend, MARGIN + 3 * LINE)?;
        let mut top = chunks_from;
        for chunk in &self.map.chunks {
            self.write_chunk(out, chunk, top)?;
            top += rows_of(chunk) * ROW + 2 * LINE;
        }
        if hidden > 0 {
            writeln!(
                out,
                "<text class=\"d\" x=\"{MARGIN}\" y=\"{}\">… and {hidden} more chunks, which the figures \
                 above include</text>",
                top + LINE / 2
            )?;
        }
        out.write_str("</svg>\n")
    }

    fn write_heading(&self, out: &mut String) -> fmt::Result {
        let ChunkMap { nr_chunks, unit_size, nr_copies, .. } = self.map;
        let charged: u64 = self.map.owners.iter().map(|owner| owner.bytes).sum();
        let cell = self.map.chunks.first().map_or(0, |chunk| chunk.bytes_of_row / CELLS_OF_ROW);
        let chunks = if *nr_chunks == 1 { "chunk" } else { "chunks" };
        write!(
            out,
            "<text class=\"h\" x=\"{MARGIN}\" y=\"{}\">Who holds the per-CPU memory</text>\n\
             <text class=\"d\" x=\"{MARGIN}\" y=\"{}\">{nr_chunks} {chunks} of {:#} for each of {nr_copies} \
             CPUs. {:#} of each copy are charged to {}. A cell is {cell} bytes.</text>\n",
            MARGIN + 12,
            MARGIN + 12 + LINE,
            Bytes(*unit_size as u64),
            Bytes(charged),
            match self.map.owners.len() {
                1 => "1 cgroup".to_owned(),
                owners => format!("{owners} cgroups"),
            },
        )
    }

    fn write_legend(&self, out: &mut String, legend: &[Ink], top: usize) -> fmt::Result {
        let lines = legend.len().div_ceil(2);
        let known = legend.iter().filter_map(|ink| self.bytes(*ink)).sum::<u64>().max(1);
        let column = (WIDTH - 2 * MARGIN) / 2;
        for (index, &ink) in legend.iter().enumerate() {
            let x = MARGIN + index / lines * column;
            let y = top + index % lines * LINE;
            let class = self.class(ink);
            write!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                x + 20,
                y + 11,
                Xml(&self.name(ink)),
            )?;
            if let Some(bytes) = self.bytes(ink) {
                let tenths = u128::from(bytes) * 1000 / u128::from(known);
                write!(
                    out,
                    "<text class=\"e\" x=\"{}\" y=\"{}\">{:#}</text>\
                     <text class=\"e d\" x=\"{}\" y=\"{}\">{}.{}%</text>",
                    x + column - 88,
                    y + 11,
                    Bytes(bytes),
                    x + column - 32,
                    y + 11,
                    tenths / 10,
                    tenths % 10,
                )?;
            }
            out.write_char('\n')?;
        }
        Ok(())
    }

    fn write_chunk(&self, out: &mut String, chunk: &MappedChunk, top: usize) -> fmt::Result {
        let MappedChunk { nr_areas, nr_pages, nr_populated, .. } = chunk;
        let name = match chunk.name {
            ChunkName::Reserved => "reserved chunk".to_owned(),
            ChunkName::Numbered(number) => format!("chunk {number}"),
        };
        let kind = match chunk.chunk_type {
            Some(ChunkType::Accounted) => " · charged areas",
            Some(ChunkType::Plain) => " · areas that are not charged",
            None => "",
        };
        writeln!(
            out,
            "<g><text x=\"{MARGIN}\" y=\"{}\">{name}<tspan class=\"d\">{kind} · {:#} of {:#} in use · \
             {nr_areas} areas · {nr_populated} of {nr_pages} pages populated</tspan></text>",
            top + 8,
            Bytes(chunk.used_bytes),
            Bytes(chunk.managed_bytes),
        )?;
        let from = top + 18;
        // With where its last rectangle is: the next one is told from there, in few digits.
        let mut paths: BTreeMap<Ink, (String, [usize; 2])> = BTreeMap::new();
        for (row, cells) in chunk.cells.chunks(CELLS_OF_ROW).enumerate() {
            let y = from + row * ROW;
            if row % 4 == 0 {
                let offset = Bytes((row * chunk.bytes_of_row) as u64);
                writeln!(
                    out,
                    "<text class=\"d e\" x=\"{}\" y=\"{}\">{offset:#}</text>",
                    LEFT - 8,
                    y + 8
                )?;
            }
            for (first, run) in runs(cells) {
                let Some(ink) = self.ink(cells[first]) else { continue };
                let (x, width) = (LEFT + first * CELL, run * CELL);
                let (path, [last_x, last_y]) = paths.entry(ink).or_default();
                let (dx, dy) = (x as isize - *last_x as isize, y - *last_y);
                write!(path, "m{dx} {dy}h{width}v{}h-{width}z", ROW - 1)?;
                [*last_x, *last_y] = [x, y];
            }
        }
        for (ink, (path, _)) in &paths {
            let class = self.class(*ink);
            writeln!(
                out,
                "<path class=\"{class}\" d=\"{path}\"><title>{}</title></path>",
                Xml(&self.name(*ink))
            )?;
        }
        writeln!(
            out,
            "<rect class=\"out\" x=\"{}.5\" y=\"{}.5\" width=\"{}\" height=\"{}\"/></g>",
            LEFT - 1,
            from - 2,
            CELLS_OF_ROW * CELL + 1,
            rows_of(chunk) * ROW + 2
        )
    }
}

fn rows_of(chunk: &MappedChunk) -> usize {
    chunk.cells.len().div_ceil(CELLS_OF_ROW)
}

/// Runs of equal cells: where they begin, and how many they are.
fn runs(cells: &[Cell]) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    cells.chunk_by(|a, b| a == b).map(move |run| {
        first += run.len();
        (first - run.len(), run.len())
    })
}

/// A path that fits into its column: of a long one, the end, which tells most.
fn shortened(path: &str) -> String {
    let path = Short(path).to_string();
    let characters = path.chars().count();
    if characters <= PATH {
        return path;
    }
    let (start, end) = (PATH / 3, characters - (PATH - PATH / 3 - 1));
    path.chars().take(start).chain(['…']).chain(path.chars().skip(end)).collect()
}

/// Displays a text in XML. What is not printable was escaped before.
struct Xml<'a>(&'a str);

impl fmt::Display for Xml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                // Not characters of XML, which are printable to nobody else either.
                '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunk_map::ROWS;
    use super::*;

    fn map(owners: usize, chunks: usize, rows: usize, cell: impl Fn(usize) -> Cell) -> ChunkMap {
        let owner = |nth: usize| AreaOwner {
            path: format!("/<{nth}>&\"{}", "x".repeat(255)),
            bytes: 1 << 40,
            nr_areas: 1,
        };
        let chunk = |nth: usize| MappedChunk {
            name: ChunkName::Numbered(nth as u64),
            chunk_type: Some(ChunkType::Accounted),
            used_bytes: 1 << 20,
            managed_bytes: 2 << 20,
            nr_areas: 100_000,
            nr_pages: 512,
            nr_populated: 512,
            bytes_of_row: 4096,
            cells: (0..rows * CELLS_OF_ROW).map(&cell).collect(),
        };
        ChunkMap {
            nr_chunks: chunks * 10,
            unit_size: 2 << 20,
            nr_copies: 1024,
            owners: (0..owners).map(owner).collect(),
            uncharged_bytes: 1,
            cached_bytes: 2,
            chunks: (0..chunks).map(chunk).collect(),
        }
    }

    #[test]
    fn a_picture_is_bounded_whatever_there_is() {
        for (chunks, rows) in [(ROWS, 1), (ROWS / 16, 16)] {
            // No two neighbours are of one colour.
            let svg = map(100_000, chunks, rows, |cell| Cell::Owner(cell * 7919 % 9)).to_svg();
            assert!(svg.len() < 2 << 20, "{} bytes", svg.len());
            assert!(svg.contains("99990 other cgroups"));
            assert!(svg.contains(&format!("and {} more chunks", chunks * 9)));
        }
        let empty = map(0, 0, 0, |_| Cell::Free).to_svg();
        assert!(empty.contains("0 chunks") && empty.ends_with("</svg>\n"));
    }

    #[test]
    fn hostile_paths_are_text_of_a_bounded_width() {
        let svg = map(3, 1, 1, Cell::Owner).to_svg();
        assert!(svg.contains("/&lt;0&gt;&amp;&quot;xxx") && !svg.contains("<0>"));
        let texts = svg.split("<text").skip(1).map(|text| text.split("</text>").next().unwrap());
        for text in texts {
            assert!(text.chars().count() < 250, "{text}");
        }
        assert_eq!(Xml("a<>&\"\u{ffff}").to_string(), "a&lt;&gt;&amp;&quot;\u{fffd}");
        assert_eq!(shortened("/\u{1b}[2J\u{202e}"), r"/\u{1b}[2J\u{202e}");
    }

    #[test]
    fn colours_stay_when_the_order_changes() {
        let mut map = map(10, 1, 1, Cell::Owner);
        let colour = |map: &ChunkMap, path: &str| {
            let picture = Picture::of(map);
            let owner = map.owners.iter().position(|owner| owner.path == path).unwrap();
            picture.colours[owner]
        };
        let paths: Vec<String> = map.owners.iter().map(|owner| owner.path.clone()).collect();
        let before: Vec<usize> = paths.iter().map(|path| colour(&map, path)).collect();
        map.owners.reverse();
        let after: Vec<usize> = paths.iter().map(|path| colour(&map, path)).collect();
        assert_eq!(before, after);
        let mut all = before;
        all.sort_unstable();
        assert_eq!(all, (0..COLOURS).collect::<Vec<_>>());
    }
}
