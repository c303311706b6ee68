//! Reads dlib's serialised numbers. Integers: a control byte (the sign, and how many bytes follow) and the bytes,
//! lowest first. Real numbers: an integer and an exponent of two.

/// The first special exponent: they encode infinity, negative infinity and NaN.
const FIRST_SPECIAL_EXPONENT: i32 = 32000;

/// The content of a file of dlib's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DlibKind {
    /// A network.
    Network,
    /// A shape predictor.
    Shape,
}

impl DlibKind {
    /// Detects the kind from a file's first bytes. Both kinds begin with the number 1 and another; then a network has
    /// the letters of its loss, a shape predictor one more number, and no number begins with a letter.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        reader.expect_number("the version", 1).ok()?;
        reader.number("what comes next").ok()?;
        match reader.take(1, "what comes next").ok()?[0] {
            letter if letter.is_ascii_lowercase() => Some(Self::Network),
            control if control & 0x70 == 0 => Some(Self::Shape),
            _ => None,
        }
    }
}

/// Reads a stream from its beginning; allocates nothing.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// The position of the next byte.
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the number of bytes left.
    pub(super) fn n_left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn expect_number(&mut self, what: &str, expected: i64) -> Result<(), String> {
        let n = self.number(what)?;
        if n == expected { Ok(()) } else { Err(format!("{what}: found {n}, expected {expected}")) }
    }

    pub(super) fn number(&mut self, what: &str) -> Result<i64, String> {
        let control = self.take(1, what)?[0];
        let n_bytes = usize::from(control & 0x0f);
        if control & 0x70 != 0 || !(1..=8).contains(&n_bytes) {
            return Err(format!("{what}: no number begins with {control:#04x}"));
        }
        let bytes = self.take(n_bytes, what)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let value = i64::try_from(value).map_err(|_| format!("{what}: the number {value} is too large"))?;
        Ok(if control & 0x80 == 0 { value } else { -value })
    }

    /// Reads a count of items of at least `min_bytes` each; refuses more than the bytes left can hold.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, String> {
        let n = self.number(what)?;
        let n_left = self.n_left();
        let fitting = usize::try_from(n).ok().filter(|n| n.checked_mul(min_bytes).is_some_and(|size| size <= n_left));
        fitting.ok_or_else(|| format!("{what}: {n} are announced, and {n_left} bytes are left"))
    }

    /// Reads a real number; refuses infinities and NaN.
    pub(super) fn real(&mut self, what: &str) -> Result<f64, String> {
        let (mantissa, exponent) = (self.number(what)?, self.number(what)?);
        let exponent = i32::try_from(exponent).ok().filter(|e| e.abs() < FIRST_SPECIAL_EXPONENT);
        let value = exponent.map(|exponent| mantissa as f64 * 2f64.powi(exponent));
        value.filter(|value| value.is_finite()).ok_or_else(|| format!("{what} is not finite"))
    }

    /// Reads a real number that is an f32 in dlib's memory. dlib writes all 24 bits of its mantissa, so the value is
    /// exact.
    pub(super) fn float(&mut self, what: &str) -> Result<f32, String> {
        let value = self.real(what)? as f32;
        if value.is_finite() { Ok(value) } else { Err(format!("{what} is too large")) }
    }

    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let left = &self.bytes[self.at..];
        let bytes = left.get(..n).ok_or_else(|| format!("{what}: {n} bytes are needed, {} are left", left.len()))?;
        self.at += n;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_dlib_writes_them() {
        let number = |bytes: &[u8]| Reader::new(bytes).number("it");
        assert_eq!(number(&[0x01, 0x00]), Ok(0));
        assert_eq!(number(&[0x82, 0x01, 0x02]), Ok(-513));
        let most = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(number(&most), Ok(i64::MAX));
        let too_large = [0x08, 0, 0, 0, 0, 0, 0, 0, 0x80];
        for wrong in [&[0x00][..], &[0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0x41, 0], &[0x02, 1], &[], &too_large] {
            assert!(number(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn real_numbers_are_finite() {
        let real = |bytes: &[u8]| Reader::new(bytes).real("it");
        assert_eq!(real(&[0x01, 3, 0x81, 2]), Ok(0.75));
        assert_eq!(real(&[0x81, 3, 0x01, 2]), Ok(-12.0));
        // 32000 to 32002: infinity, negative infinity, NaN; then a number that is too large.
        for exponent in [[0x00, 0x7d], [0x01, 0x7d], [0x02, 0x7d], [0x00, 0x04]] {
            for mantissa in [0, 1] {
                let bytes = [0x01, mantissa, 0x02, exponent[0], exponent[1]];
                assert!(real(&bytes).unwrap_err().contains("not finite"), "{bytes:?}");
            }
        }
        let float = Reader::new(&[0x01, 1, 0x02, 0x80, 0x00]).float("it");
        assert!(float.unwrap_err().contains("too large"));
    }

    #[test]
    fn no_more_is_announced_than_there_is() {
        let count = |bytes: &[u8]| Reader::new(bytes).count("trees", 2);
        assert_eq!(count(&[0x01, 2, 9, 9, 9, 9]), Ok(2));
        assert!(count(&[0x01, 2, 9, 9, 9]).unwrap_err().contains("3 bytes are left"));
        assert!(count(&[0x81, 1, 9, 9]).is_err());
        assert!(count(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        assert_eq!(DlibKind::of(b"\x01\x01\x01\x0closs_metric_"), Some(DlibKind::Network));
        assert_eq!(DlibKind::of(b"\x01\x01\x81\x0a\x81\x01"), Some(DlibKind::Shape));
        for neither in
            [&b""[..], b"\x01\x01", b"\x01\x02\x81\x0a\x81\x01", b"\x01\x01\x01\x0c123456789abc", b"PK\x03\x04"]
        {
            assert_eq!(DlibKind::of(neither), None, "{neither:?}");
        }
    }
}
