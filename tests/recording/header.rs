//! The configuration at the top of a recording.

use std::collections::BTreeMap;

use super::line::number;
use super::lines::Lines;
use super::{COLUMN_NAMES, Reason};

const PAGE_SIZE: u64 = 4096;

/// No allocator has smaller units: one must hold the largest request.
const MIN_UNIT_SIZE: usize = 32 << 10;

/// Which of the two kinds of recording a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Operations with the answers, events and states of the recorded allocator.
    Placement,
    /// Operations only.
    Workload,
}

/// When the deferred balance work of the recorded allocator ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalanceMode {
    /// At the `balance` lines.
    Explicit,
    /// Right after each operation that requested it.
    Immediate,
}

/// The configuration of a run. Sizes are in bytes.
///
/// A file has to give its format, `unit_size` and `dyn_size`; the rest has defaults.
#[derive(Clone, Debug)]
pub struct Header {
    pub format: Format,
    /// `A` (one set of chunks, partial depopulation) or `B` (two sets). `None` where the file does
    /// not say, as in workloads: any profile may replay it.
    pub profile: Option<char>,
    /// 1 where the file does not say; without influence on places.
    pub nr_cpus: u32,
    pub unit_size: usize,
    /// 0 where the file does not say.
    pub static_size: usize,
    /// 0 where the file does not say.
    pub reserved_size: usize,
    pub dyn_size: usize,
    /// Where the file does not say: explicit in placement files, immediate in workloads.
    pub balance_mode: BalanceMode,
    /// Every other key, as it stands.
    pub other: BTreeMap<String, String>,
}

/// A reason, and the line that it is about.
type Located<T> = Result<T, (u64, Reason)>;

impl Header {
    /// Whether whoever replays must run the requested balance work after each operation, because
    /// the file has no `balance` lines. Placement files have them in both modes; in one without,
    /// the work never ran.
    pub fn balance_is_implied(&self) -> bool {
        self.format == Format::Workload && self.balance_mode == BalanceMode::Immediate
    }

    /// Reads up to the column names or the first state, whichever comes first.
    pub(super) fn read(lines: &mut Lines) -> Located<Header> {
        let mut keys = Keys::default();
        keys.read(lines).map_err(|reason| (lines.number(), reason))?;
        keys.end = lines.number();

        let format = keys.format()?;
        let profile = keys.one_of("profile", &[("A", 'A'), ("B", 'B')], Reason::UnknownProfile)?;
        let modes = [("explicit", BalanceMode::Explicit), ("immediate", BalanceMode::Immediate)];
        let balance_mode = keys.one_of("balance_mode", &modes, Reason::UnknownBalanceMode)?;
        keys.expect("page_size", PAGE_SIZE)?;
        keys.expect("min_alloc_size_unit", 4)?;
        let header = Header {
            format,
            profile,
            nr_cpus: keys.optional("nr_cpus")?.unwrap_or(1),
            unit_size: keys.required("unit_size")?,
            static_size: keys.optional("static_size")?.unwrap_or(0),
            reserved_size: keys.optional("reserved_size")?.unwrap_or(0),
            dyn_size: keys.required("dyn_size")?,
            balance_mode: balance_mode.unwrap_or(match format {
                Format::Placement => BalanceMode::Explicit,
                Format::Workload => BalanceMode::Immediate,
            }),
            other: keys.values.into_iter().map(|(key, (_, value))| (key, value)).collect(),
        };
        header.check_shape().map_err(|reason| (keys.end, reason))?;
        Ok(header)
    }

    /// Refuses configurations that no allocator could have run with, so that a replay need not.
    fn check_shape(&self) -> Result<(), Reason> {
        let bad = |why: String| Err(Reason::BadShape(why));
        if self.nr_cpus == 0 {
            return bad("no CPUs".into());
        }
        let unit = self.unit_size;
        if !(unit as u64).is_multiple_of(PAGE_SIZE) {
            return bad(format!("unit_size {unit} is no whole number of pages"));
        }
        if unit < MIN_UNIT_SIZE {
            return bad(format!("unit_size {unit} is below {MIN_UNIT_SIZE}"));
        }
        if !self.reserved_size.is_multiple_of(4) {
            return bad(format!("reserved_size {} is no multiple of 4", self.reserved_size));
        }
        let first_unit = [self.static_size, self.reserved_size, self.dyn_size]
            .into_iter()
            .try_fold(0usize, usize::checked_add);
        if first_unit.is_none_or(|sum| sum > unit) {
            return bad(format!("the first unit's regions exceed unit_size {unit}"));
        }
        // The static part grows to a multiple of 4 at the cost of the dynamic part.
        if self.static_size.next_multiple_of(4) - self.static_size >= self.dyn_size {
            return bad("no dynamic region".into());
        }
        Ok(())
    }
}

/// The header as it stands: each key with its line and value.
#[derive(Default)]
struct Keys {
    values: BTreeMap<String, (u64, String)>,
    /// The line behind the header, where a missing key is reported.
    end: u64,
}

impl Keys {
    fn read(&mut self, lines: &mut Lines) -> Result<(), Reason> {
        while let Some(text) = lines.next()? {
            if text == COLUMN_NAMES || text.starts_with("# state=") {
                lines.hold();
                break;
            }
            let Some(remark) = text.strip_prefix('#') else {
                // A file of another kind is better told so than that a record comes too early.
                self.format().map_err(|(_, reason)| reason)?;
                return Err(Reason::BeforeColumnNames);
            };
            // Anything that is not `key=value` is free text.
            let pair = remark.strip_prefix(' ').and_then(|remark| remark.split_once('='));
            if let Some((key, value)) = pair.filter(|(key, _)| is_key(key)) {
                let (key, value) = (key.to_owned(), value.to_owned());
                let number = lines.number();
                if self.values.insert(key.clone(), (number, value)).is_some() {
                    return Err(Reason::RepeatedKey(key));
                }
            }
        }
        Ok(())
    }

    fn format(&self) -> Located<Format> {
        match self.values.get("format") {
            None => Err((self.end, Reason::MissingKey("format"))),
            Some((line, text)) => match text.as_str() {
                "percpu-placement-data-1" => Ok(Format::Placement),
                "percpu-workload-1" => Ok(Format::Workload),
                _ => Err((*line, Reason::UnknownFormat(text.clone()))),
            },
        }
    }

    fn one_of<T: Copy>(
        &mut self,
        key: &str,
        known: &[(&str, T)],
        unknown: fn(String) -> Reason,
    ) -> Located<Option<T>> {
        let Some((line, text)) = self.values.remove(key) else { return Ok(None) };
        match known.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err((line, unknown(text))),
        }
    }

    fn required<T: TryFrom<u64>>(&mut self, key: &'static str) -> Located<T> {
        self.optional(key)?.ok_or((self.end, Reason::MissingKey(key)))
    }

    fn optional<T: TryFrom<u64>>(&mut self, key: &'static str) -> Located<Option<T>> {
        let Some((line, text)) = self.values.remove(key) else { return Ok(None) };
        let value = number(key, &text).map_err(|reason| (line, reason))?;
        let value = T::try_from(value);
        value.map(Some).map_err(|_| (line, Reason::BadNumber { field: key.to_owned(), text }))
    }

    /// A constant of the allocator, where the file gives it.
    fn expect(&self, key: &'static str, supported: u64) -> Located<()> {
        let Some((line, text)) = self.values.get(key) else { return Ok(()) };
        match number(key, text) {
            Ok(value) if value == supported => Ok(()),
            Ok(_) => Err((*line, Reason::BadShape(format!("{key} is {text}, not {supported}")))),
            Err(reason) => Err((*line, reason)),
        }
    }
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
}
