//! A legal request for an area.

use std::alloc::Layout;

use super::{ChunkType, GRANULE_SIZE, MAX_ALIGN, MAX_AREA_SIZE};

/// How a request wants to be served.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
/// let atomic = RequestFlags { atomic: true, ..RequestFlags::default() };
/// assert!(simulator.alloc(32 << 10, 8, atomic).is_none()); // it would need a new chunk
/// assert!(simulator.alloc(32 << 10, 8, RequestFlags::default()).is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestFlags {
    /// Must not block: only pages that are populated already, no new chunk.
    pub atomic: bool,
    /// From the chunks whose areas are charged to a cgroup.
    pub account: bool,
    /// From the reserved region; an ordinary request where there is none.
    pub reserved: bool,
}

/// A request of legal size and alignment.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{Profile, Regions, Request, RequestFlags, Simulator};
///
/// let request = Request::new(30, 2, RequestFlags::default())?;
/// assert_eq!((request.size(), request.align()), (32, 4)); // whole granules
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
/// assert_eq!(simulator.place(&request).map(|place| place.size), Some(32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub(crate) len: usize,
    pub(crate) align: usize,
    pub(crate) flags: RequestFlags,
}

/// A size or an alignment that no allocator state could serve.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{InvalidRequest, Request, RequestFlags};
///
/// let error: InvalidRequest = Request::new(0, 8, RequestFlags::default()).unwrap_err();
/// assert_eq!(error, InvalidRequest::ZeroSize);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// The size is 0.
    #[error("an area of 0 bytes was asked for")]
    ZeroSize,
    /// The size is above [`MAX_AREA_SIZE`].
    #[error("an area of {size} bytes was asked for, the largest is {MAX_AREA_SIZE}")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
    },
    /// The alignment is above [`MAX_ALIGN`], or no power of two.
    #[error("an alignment of {align} bytes was asked for, legal are powers of two to {MAX_ALIGN}")]
    BadAlign {
        /// Bytes asked for.
        align: u64,
    },
}

impl Request {
    /// Checks `size` and `align`, both in bytes, and rounds the size up to granules.
    ///
    /// An alignment of 0 to 3 counts as 4, as in Linux.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`], without any effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{Request, RequestFlags};
    ///
    /// let request = |size, align| Request::new(size, align, RequestFlags::default());
    /// assert!(request(32 << 10, 4096).is_ok());
    /// assert!(request(100, 48).is_err()); // no power of two
    /// assert!(request((32 << 10) + 1, 8).is_err());
    /// ```
    #[inline]
    pub fn new(size: u64, align: u64, flags: RequestFlags) -> Result<Self, InvalidRequest> {
        if size == 0 {
            return Err(InvalidRequest::ZeroSize);
        }
        let align_bytes = align.max(GRANULE_SIZE as u64);
        if !align_bytes.is_power_of_two() || align_bytes > MAX_ALIGN as u64 {
            return Err(InvalidRequest::BadAlign { align });
        }
        if size > MAX_AREA_SIZE as u64 {
            return Err(InvalidRequest::TooLarge { size });
        }
        Ok(Request {
            len: (size as usize).div_ceil(GRANULE_SIZE),
            align: align_bytes as usize / GRANULE_SIZE,
            flags,
        })
    }

    /// Size and alignment in granules, of a legal size.
    #[inline]
    pub(crate) fn in_granules(layout: Layout) -> Option<(usize, usize)> {
        let (size, align) = (layout.size(), layout.align());
        let is_legal = size.wrapping_sub(1) < MAX_AREA_SIZE;
        is_legal.then(|| (size.div_ceil(GRANULE_SIZE), align.div_ceil(GRANULE_SIZE)))
    }

    /// Bytes that the area will have: the size rounded up to granules.
    pub fn size(&self) -> usize {
        self.len * GRANULE_SIZE
    }

    /// Alignment in bytes, at least 4.
    pub fn align(&self) -> usize {
        self.align * GRANULE_SIZE
    }

    pub(crate) fn chunk_type(&self, split_types: bool) -> ChunkType {
        if split_types && self.flags.account { ChunkType::Accounted } else { ChunkType::Plain }
    }
}
