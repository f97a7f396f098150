//! What one copy holds, as plain integers, and as the bytes that another process has of it.

use std::ops::{BitAnd, BitOr};

use percpu_memcg::this_cpu::LocalInt;

/// Items that a stack has room for.
pub(crate) const CAPACITY: usize = 4;

/// Bytes before the first item of a stack.
const HEADER: usize = 8;

/// An integer with arithmetic that is not the crate's.
pub(crate) trait Width: LocalInt + BitAnd<Output = Self> + BitOr<Output = Self> {
    const NAME: &'static str;
    const UNIT: Self;

    /// A number with about this byte in each of its bytes: all differ, as do those of two numbers,
    /// and numbers of every width compare as their bytes do, if these differ by 8 or more.
    fn of(byte: u8) -> Self;
    fn bits(self) -> u64;
    fn from_le_bytes(bytes: &[u8]) -> Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;

    fn le_bytes(self) -> Vec<u8> {
        self.bits().to_le_bytes()[..size_of::<Self>()].to_vec()
    }
}

macro_rules! widths {
    ($($int:ident)*) => {$(
        impl Width for $int {
            const NAME: &'static str = stringify!($int);
            const UNIT: Self = 1;

            fn of(byte: u8) -> Self {
                const EACH: u64 = 0x0101_0101_0101_0101;
                const DIFFERENT: u64 = 0x0706_0504_0302_0100;
                (u64::from(byte) * EACH ^ DIFFERENT) as Self
            }

            fn bits(self) -> u64 {
                self as u64
            }

            fn from_le_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("as many bytes as it has"))
            }

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}

widths!(u8 i8 u16 i16 u32 i32 u64 i64 usize isize);

/// What a copy holds.
pub(crate) trait State: Clone + 'static {
    /// For a copy that must not be touched, unlike all that are used otherwise.
    fn decoy() -> Self;
    fn from_bytes(bytes: &[u8]) -> Self;
    fn to_bytes(&self) -> Vec<u8>;

    /// Clears what nobody reads, and a sequence may write before it commits.
    fn clear_unread(_bytes: &mut [u8]) {}
}

impl<N: Width> State for N {
    fn decoy() -> Self {
        N::of(0x6c)
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        N::from_le_bytes(bytes)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.le_bytes()
    }
}

/// The items of a stack.
#[derive(Clone, Debug)]
pub(crate) struct Stack<N>(pub(crate) Vec<N>);

impl<N: Width> Stack<N> {
    /// A stack of so many items, of which none is in a stack with another `byte`.
    pub(crate) fn of(len: usize, byte: u8) -> Self {
        Stack((0..len).map(|place| N::of(byte + 8 * place as u8)).collect())
    }
}

impl<N: Width> State for Stack<N> {
    fn decoy() -> Self {
        Stack::of(2, 0x6c)
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let len = usize::from(bytes[0]);
        let items = bytes[HEADER..].chunks_exact(size_of::<N>()).take(len);
        Stack(items.map(N::from_le_bytes).collect())
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[0] = self.0.len() as u8;
        bytes.extend(self.0.iter().flat_map(|item| item.le_bytes()));
        bytes.resize((HEADER + CAPACITY * size_of::<N>()).next_multiple_of(HEADER), 0);
        bytes
    }

    fn clear_unread(bytes: &mut [u8]) {
        let end = HEADER + CAPACITY * size_of::<N>();
        let first = HEADER + usize::from(bytes[0]) * size_of::<N>();
        if first < end {
            bytes[first..end].fill(0);
        }
    }
}
