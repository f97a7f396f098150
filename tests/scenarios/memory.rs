//! Memory that cgroups pay for.

use std::sync::Arc;

use parking_lot::Mutex;
use percpu_memcg::cgroup::{ReclaimRequest, Registration};
use percpu_memcg::{Charge, ChargeError, Gfp, Memcg, PerCpu, PerCpuAllocator};

/// Bytes that jobs and caches charge at a time: few enough to come to an OOM.
pub(crate) const PIECE: u64 = 32 << 10;

/// Something that a cache can do without.
pub(crate) trait Piece: Send + 'static {
    fn bytes(&self) -> u64;
}

impl Piece for Charge {
    fn bytes(&self) -> u64 {
        self.bytes()
    }
}

/// A page on every CPU.
pub(crate) type Page = PerCpu<[u64; 512]>;

/// What a page on every possible CPU is charged: the copies, and 8 bytes for every 4 of its size.
pub(crate) fn page_size(pcpu: &PerCpuAllocator) -> u64 {
    4096 * pcpu.machine().possible().len() as u64 + 4096 / 4 * 8
}

/// An object and what is charged for it.
pub(crate) struct Object(#[expect(dead_code, reason = "held")] Page, u64);

impl Piece for Object {
    fn bytes(&self) -> u64 {
        self.1
    }
}

/// Pieces that are given back when somebody asks, the latest first.
pub(crate) struct Cache<P: Piece = Charge> {
    memcg: Memcg,
    pieces: Arc<Mutex<Vec<P>>>,
    requests: Arc<Mutex<Vec<ReclaimRequest>>>,
    _hook: Registration,
}

impl<P: Piece> Cache<P> {
    pub(crate) fn new(memcg: &Memcg) -> Self {
        Cache::with_order(memcg, 0)
    }

    pub(crate) fn with_order(memcg: &Memcg, order: i32) -> Self {
        let pieces = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let hook = memcg.on_reclaim(order, {
            let (pieces, requests) = (Arc::clone(&pieces), Arc::clone(&requests));
            move |request| {
                requests.lock().push(request.clone());
                let mut freed = 0;
                while freed < request.bytes
                    && let Some(piece) = pieces.lock().pop()
                {
                    freed += P::bytes(&piece);
                }
                freed
            }
        });
        Cache { memcg: memcg.clone(), pieces, requests, _hook: hook }
    }

    pub(crate) fn put(&self, piece: P) {
        self.pieces.lock().push(piece);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.lock().iter().map(P::bytes).sum()
    }

    /// What was asked for since the last look.
    pub(crate) fn requests(&self) -> Vec<ReclaimRequest> {
        std::mem::take(&mut *self.requests.lock())
    }
}

impl Cache<Charge> {
    /// Reads so many bytes, which may take the place of others.
    pub(crate) fn read(&self, bytes: u64) -> Result<(), ChargeError> {
        for piece in pieces(bytes) {
            // Not under the lock, which the hook takes.
            let piece = self.memcg.charge(piece)?;
            self.put(piece);
        }
        Ok(())
    }
}

impl Cache<Object> {
    /// As many objects as fit into so many bytes.
    pub(crate) fn build(&self, pcpu: &PerCpuAllocator, bytes: u64) {
        let _in = self.memcg.enter();
        for _ in 0..bytes / page_size(pcpu) {
            let page = PerCpu::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT).expect("nothing limits it");
            self.put(Object(page, page_size(pcpu)));
        }
    }
}

fn pieces(bytes: u64) -> impl Iterator<Item = u64> {
    (0..bytes).step_by(PIECE as usize).map(move |start| PIECE.min(bytes - start))
}

/// Work that needs what it has.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) memcg: Memcg,
    held: Mutex<Vec<Charge>>,
}

impl Job {
    pub(crate) fn new(memcg: &Memcg) -> Self {
        Job { memcg: memcg.clone(), held: Mutex::default() }
    }

    /// Stops at what is refused, and keeps what it has.
    pub(crate) fn alloc(&self, bytes: u64) -> Result<(), ChargeError> {
        for piece in pieces(bytes) {
            let charge = self.memcg.charge(piece)?;
            self.held.lock().push(charge);
        }
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.held.lock().iter().map(Charge::bytes).sum()
    }

    pub(crate) fn end(&self) {
        self.held.lock().clear();
    }
}
