//! The ten widths as bits, so that one model serves all: books are kept in 64 bits, and compared
//! modulo 2 to the width.

use percpu_memcg::this_cpu::LocalInt;

/// An integer of the operations.
pub(crate) trait Width: LocalInt {
    const NAME: &'static str;
    const BITS: u32;

    /// The low bits of `bits`.
    fn truncated(bits: u64) -> Self;

    /// The value's bits, and zeroes above.
    fn bits(self) -> u64;
}

macro_rules! widths {
    ($($int:ident as $unsigned:ident),*) => {$(
        impl Width for $int {
            const NAME: &'static str = stringify!($int);
            const BITS: u32 = $int::BITS;

            #[inline(always)]
            fn truncated(bits: u64) -> Self {
                bits as $int
            }

            #[inline(always)]
            fn bits(self) -> u64 {
                self as $unsigned as u64
            }
        }
    )*};
}

widths!(
    u8 as u8,
    i8 as u8,
    u16 as u16,
    i16 as u16,
    u32 as u32,
    i32 as u32,
    u64 as u64,
    i64 as u64,
    usize as usize,
    isize as usize
);

/// Something that can be made for any width.
pub(crate) trait Generic<T> {
    fn of<N: Width>(&self) -> T;
}

/// One of each width.
pub(crate) fn every_width<T>(make: &impl Generic<T>) -> Vec<T> {
    vec![
        make.of::<u8>(),
        make.of::<i8>(),
        make.of::<u16>(),
        make.of::<i16>(),
        make.of::<u32>(),
        make.of::<i32>(),
        make.of::<u64>(),
        make.of::<i64>(),
        make.of::<usize>(),
        make.of::<isize>(),
    ]
}
