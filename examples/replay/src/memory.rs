//! The content of areas, and the memory that the process holds.

use std::fs;

use percpu_memcg::machine::CpuId;

/// True when all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Without a branch for each byte: a machine of 64 CPUs has gigabytes of zeros to read.
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// What the copy of one CPU of one area is filled with.
#[derive(Clone, Copy)]
pub struct Pattern([u8; 8]);

impl Pattern {
    pub fn of(id: u64, cpu: CpuId) -> Pattern {
        // The golden ratio, odd: products differ where ids differ. No byte may be taken for zero.
        let number = (id << 10 | u64::from(cpu.get())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Pattern((number | 0x0101_0101_0101_0101).to_le_bytes())
    }

    pub fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(self.0.len()) {
            chunk.copy_from_slice(&self.0[..chunk.len()]);
        }
    }

    pub fn fills(&self, bytes: &[u8]) -> bool {
        bytes.chunks(self.0.len()).all(|chunk| chunk == &self.0[..chunk.len()])
    }
}

/// The most memory that the process was seen to hold, in KiB.
///
/// Reading a copy that nobody wrote maps the zero page that all processes share: it costs room in
/// the page tables, and no memory of its own.
#[derive(Default)]
pub struct Resident {
    /// Private memory: `RssAnon`.
    pub peak_private: u64,
    /// Page tables: `VmPTE`.
    pub peak_page_tables: u64,
    calls: u64,
}

impl Resident {
    /// Looks now and then: to look takes longer than to allocate.
    pub fn sample_sometimes(&mut self) {
        const INTERVAL: u64 = 2048;
        if self.calls.is_multiple_of(INTERVAL) {
            self.sample();
        }
        self.calls += 1;
    }

    pub fn sample(&mut self) {
        let Ok(status) = fs::read_to_string("/proc/self/status") else { return };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        self.peak_private = self.peak_private.max(field("RssAnon:").unwrap_or(0));
        self.peak_page_tables = self.peak_page_tables.max(field("VmPTE:").unwrap_or(0));
    }
}
