//! Numbers as dlib serialises them: a control byte (the sign, and how many bytes follow) and the bytes, lowest first;
//! real numbers as a number and an exponent of two.

/// Reads a stream from its beginning; nothing is allocated.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// How far it has come.
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn expect_number(&mut self, what: &str, expected: i64) -> Result<(), String> {
        let n = self.number(what)?;
        if n == expected { Ok(()) } else { Err(format!("{what}: found {n}, expected {expected}")) }
    }

    pub(super) fn number(&mut self, what: &str) -> Result<i64, String> {
        let control = self.take(1, what)?[0];
        let n_bytes = usize::from(control & 0x0f);
        if control & 0x70 != 0 || !(1..=8).contains(&n_bytes) {
            return Err(format!("{what}: {control:#04x} begins no number"));
        }
        let bytes = self.take(n_bytes, what)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let value = i64::try_from(value).map_err(|_| format!("{what}: the number {value} is too large"))?;
        Ok(if control & 0x80 == 0 { value } else { -value })
    }

    pub(super) fn real(&mut self, what: &str) -> Result<f64, String> {
        let (mantissa, exponent) = (self.number(what)?, self.number(what)?);
        // Exponents from 32000 on are dlib's infinities and no number.
        let exponent = i32::try_from(exponent).ok().filter(|e| e.abs() < 32000);
        let exponent = exponent.ok_or_else(|| format!("{what} is not finite"))?;
        Ok(mantissa as f64 * 2f64.powi(exponent))
    }

    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let left = &self.bytes[self.at..];
        let bytes = left.get(..n).ok_or_else(|| format!("{what} asks for {n} bytes, {} are left", left.len()))?;
        self.at += n;
        Ok(bytes)
    }

    /// How many things follow, each of at least `min_bytes`: never more than the bytes that are left can hold.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, String> {
        let n = self.number(what)?;
        let left = self.bytes.len() - self.at;
        let n = usize::try_from(n).ok().filter(|n| n.checked_mul(min_bytes).is_some_and(|bytes| bytes <= left));
        n.ok_or_else(|| format!("{what}: more are announced than the {left} bytes that are left can hold"))
    }

    /// A real number as dlib keeps it in memory.
    pub(super) fn float(&mut self, what: &str) -> Result<f32, String> {
        // dlib writes a float's 24 bits of mantissa, so nothing is lost.
        Ok(self.real(what)? as f32)
    }
}
