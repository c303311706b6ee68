//! Huffman tables, built to read a code and the number behind it in one lookup.

use super::{Bits, Setback};

/// The number of bits that are looked up at once; nine of ten codes in a photo fit, with their numbers.
const LOOKUP_BITS: u32 = 10;
const N_LOOKUP: usize = 1 << LOOKUP_BITS;

/// A table in the form that decoding uses.
pub(super) struct Huffman {
    lookup: Box<[Entry; N_LOOKUP]>,
    /// By code length: the first 16-bit window that is above all codes of that length.
    above: [u32; 17],
    /// By code length: added to a code, this is its symbol's position.
    shift: [i32; 17],
    symbols: [u8; 256],
}

/// The meaning of a code. Bits 0 to 4: its length. 5 to 8: the size of the number behind it. 9 to 12: the run of zeros
/// before the number. 13: whether the number is included, from bit 16 on. Zero: no code.
#[derive(Clone, Copy)]
pub(super) struct Entry(u32);

impl Entry {
    const KNOWN: u32 = 1 << 13;

    fn new(length: u32, symbol: u8) -> Self {
        Self(length | u32::from(symbol & 15) << 5 | u32::from(symbol >> 4) << 9)
    }

    /// Returns true if the bits are no code of the table.
    pub(super) fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// The code's length in bits.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        self.0 & 31
    }

    /// The low half of the symbol: the size of the number behind the code, in bits.
    #[inline(always)]
    pub(super) fn size(self) -> u32 {
        self.0 >> 5 & 15
    }

    /// The high half of the symbol: the run of zeros.
    #[inline(always)]
    pub(super) fn run(self) -> usize {
        (self.0 >> 9 & 15) as usize
    }

    /// Returns the number behind the code, whose bits have not been consumed yet.
    #[inline(always)]
    pub(super) fn number(self, bits: &Bits<'_>) -> i32 {
        if self.0 & Self::KNOWN != 0 {
            return self.0 as i32 >> 16;
        }
        match self.size() {
            0 => 0,
            size => extend(bits.peek_behind(self.length(), size), size),
        }
    }
}

/// Numbers of `size` bits that start with a zero are negative (T.81, F.2.2.1).
#[inline(always)]
fn extend(raw: u32, size: u32) -> i32 {
    let raw = raw as i32;
    if raw < 1 << (size - 1) { raw + 1 - (1 << size) } else { raw }
}

impl Huffman {
    /// Builds a table from a definition: sixteen counts, one for each length, and the symbols.
    pub(super) fn new(counts: &[u8; 16], listed: &[u8]) -> Result<Self, Setback> {
        let mut table =
            Self { lookup: Box::new([Entry(0); N_LOOKUP]), above: [0; 17], shift: [0; 17], symbols: [0; 256] };
        if listed.len() > 256 {
            return Err("a Huffman table has too many codes");
        }
        table.symbols[..listed.len()].copy_from_slice(listed);
        let (mut code, mut n_seen) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            table.shift[length as usize] = n_seen as i32 - code as i32;
            for _ in 0..count {
                let symbol = *listed.get(n_seen).ok_or("a Huffman table is cut short")?;
                if code >= 1 << length {
                    return Err("a Huffman table has too many codes");
                }
                if length <= LOOKUP_BITS {
                    table.enter(code, length, symbol);
                }
                code += 1;
                n_seen += 1;
            }
            table.above[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Fills every lookup entry that starts with the code.
    fn enter(&mut self, code: u32, length: u32, symbol: u8) {
        let entry = Entry::new(length, symbol);
        let n_free = LOOKUP_BITS - length;
        let first = (code << n_free) as usize;
        for (behind, place) in (0u32..).zip(&mut self.lookup[first..first + (1 << n_free)]) {
            let size = entry.size();
            *place = entry;
            if (1..=n_free).contains(&size) {
                let number = extend(behind >> (n_free - size), size);
                *place = Entry(entry.0 | Entry::KNOWN | (number as u32) << 16);
            }
        }
    }

    /// Decodes the next code without consuming it. Refills, so that `bits` has code and number ready.
    #[inline(always)]
    pub(super) fn peek(&self, bits: &mut Bits<'_>) -> Entry {
        bits.refill();
        let entry = self.lookup[bits.peek(LOOKUP_BITS) as usize % N_LOOKUP];
        if entry.is_nothing() { self.peek_long_code(bits.peek(16)) } else { entry }
    }

    #[cold]
    fn peek_long_code(&self, window: u32) -> Entry {
        for length in LOOKUP_BITS + 1..=16 {
            if window < self.above[length as usize] {
                let at = (window >> (16 - length)) as i32 + self.shift[length as usize];
                let symbol = usize::try_from(at).ok().and_then(|at| self.symbols.get(at));
                return symbol.map_or(Entry(0), |&symbol| Entry::new(length, symbol));
            }
        }
        Entry(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_numbers_are_read() {
        // One code of two bits, one of three, one of twelve.
        let mut counts = [0; 16];
        (counts[1], counts[2], counts[11]) = (1, 1, 1);
        let table = Huffman::new(&counts, &[0x03, 0x21, 0x57]).unwrap();
        // 00 + 101, 010 + 0, 011000000000 + 1111111, no code.
        #[expect(clippy::unusual_byte_groupings, reason = "grouped by code and number")]
        let data = 0b00_101_010_0_011000000000_1111111_1111u32.to_be_bytes();
        let mut bits = Bits::new(&data);
        for (run, size, number) in [(0, 3, 5), (2, 1, -1), (5, 7, 127)] {
            let entry = table.peek(&mut bits);
            assert_eq!((entry.run(), entry.size(), entry.number(&bits)), (run, size, number));
            bits.consume(entry.length() + entry.size());
        }
        assert!(table.peek(&mut bits).is_nothing());
    }

    #[test]
    fn impossible_tables_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(Huffman::new(&counts, &[1, 2, 3]).is_err());
        counts[0] = 2;
        assert!(Huffman::new(&counts, &[1]).is_err());
        assert!(Huffman::new(&counts, &[1, 2]).is_ok());
    }
}
