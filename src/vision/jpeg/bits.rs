//! Bits of entropy-coded data, most significant first.

use super::super::container::next_mark;

/// Reads one run of entropy-coded data without stuffed zeros. The data continues with endless zeros; [`Self::overrun`]
/// reports afterwards whether they were read, so that the inner loops need no checks.
#[derive(Clone)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, from the top. Bits below `n_bits` may already hold data; it is correct.
    buffer: u64,
    n_bits: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, buffer: 0, n_bits: 0 }
    }

    /// Makes at least 56 bits available, more than the longest code and the longest number behind it. It does not check
    /// for enough bits first: mispredicted branches would cost more than the check saves.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let next = match self.data.get(self.at..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => u64::from_be_bytes(*bytes),
            None => self.tail(),
        };
        self.buffer |= next >> self.n_bits;
        self.at += ((63 - self.n_bits) >> 3) as usize;
        self.n_bits |= 56;
    }

    #[cold]
    fn tail(&self) -> u64 {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(self.data.iter().skip(self.at)) {
            *to = *from;
        }
        u64::from_be_bytes(bytes)
    }

    /// Returns the next 1 to 32 bits, after a refill.
    #[inline(always)]
    pub(super) fn peek(&self, n: u32) -> u32 {
        (self.buffer >> (64 - n)) as u32
    }

    /// Returns `size` bits (1 to 16), starting `skip` bits later, after a refill.
    #[inline(always)]
    pub(super) fn peek_behind(&self, skip: u32, size: u32) -> u32 {
        ((self.buffer << skip) >> (64 - size)) as u32
    }

    /// Consumes up to 32 bits that were peeked at.
    #[inline(always)]
    pub(super) fn consume(&mut self, n: u32) {
        self.buffer <<= n;
        self.n_bits -= n;
    }

    /// Reads `n` bits, 0 to 16.
    #[inline(always)]
    pub(super) fn take(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        self.refill();
        let value = self.peek(n);
        self.consume(n);
        value
    }

    /// Skips up to 64 bits.
    #[inline(always)]
    pub(super) fn skip(&mut self, mut n: u32) {
        self.refill();
        while n > 32 {
            self.consume(32);
            self.refill();
            n -= 32;
        }
        self.consume(n);
    }

    /// Returns true if more bits were consumed than the data has.
    pub(super) fn overrun(&self) -> bool {
        self.at * 8 > self.data.len() * 8 + self.n_bits as usize
    }
}

/// A scan's entropy-coded data without stuffing, cut at its restart marks.
pub(super) struct Runs {
    clean: Vec<u8>,
    ends: Vec<usize>,
}

impl Runs {
    /// Unstuffs the data of one scan, which extends to the next mark other than a restart.
    pub(super) fn new(data: &[u8]) -> Self {
        let mut clean = Vec::with_capacity(data.len());
        let mut ends = Vec::new();
        let mut rest = data;
        while let Some(at) = next_mark(rest) {
            clean.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
            match rest.split_first() {
                // A fill byte: the mark's code follows.
                Some((0xff, _)) => {}
                Some((0x00, after)) => {
                    clean.push(0xff);
                    rest = after;
                }
                Some((_, after)) => {
                    ends.push(clean.len());
                    rest = after;
                }
                None => {}
            }
        }
        clean.extend_from_slice(rest);
        ends.push(clean.len());
        Self { clean, ends }
    }

    /// Returns the run with this number, if it exists.
    pub(super) fn run(&self, run_idx: usize) -> Option<Bits<'_>> {
        let end = *self.ends.get(run_idx)?;
        let start = run_idx.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.clean.get(start..end).map(Bits::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_order_and_zeros_follow() {
        let data: Vec<u8> = (1..=40).collect();
        let mut bits = Bits::new(&data);
        for byte in 1..=40 {
            assert_eq!(bits.take(3) << 5 | bits.take(5), byte);
        }
        assert!(!bits.overrun());
        let mut further = Bits::new(&data);
        further.skip(0);
        further.skip(61);
        assert_eq!((further.take(3), further.take(8)), (8 & 7, 9));
        assert_eq!(bits.take(16), 0);
        assert!(bits.overrun());
    }

    #[test]
    fn stuffing_is_taken_out_and_restarts_cut() {
        let runs = Runs::new(b"\x12\xff\x00\x34\xff\xd0\x56\xff\xff\xd1\xff\x00");
        let all = |idx: usize, n| runs.run(idx).map(|mut bits| (0..n).map(|_| bits.take(8)).collect::<Vec<_>>());
        assert_eq!(all(0, 3), Some(vec![0x12, 0xff, 0x34]));
        assert_eq!(all(1, 1), Some(vec![0x56]));
        assert_eq!(all(2, 2), Some(vec![0xff, 0]));
        assert_eq!(all(3, 1), None);
    }
}
