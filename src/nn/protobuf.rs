//! Reads the wire format of protocol buffers in place.
//!
//! An ordinary decoder creates an object for every message, and two bytes can require one of hundreds of bytes. This
//! one only iterates over a message's fields, so that a reader can limit the length of every list and copies only what
//! it keeps.

/// The content of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

/// Iterates over a message's fields in order, ending with the first error.
pub(super) fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Content<'_>), String>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or_else(|| "it is cut short or no ONNX model".to_owned()))
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Content<'a>)> {
    let key = varint(rest)?;
    if key >> 3 == 0 {
        // No field has this number; a file of zeros would be millions of fields.
        return None;
    }
    let content = match key & 7 {
        0 => Content::Number(varint(rest)?),
        1 => {
            take(rest, 8)?;
            Content::Eight
        }
        2 => {
            let n = usize::try_from(varint(rest)?).ok()?;
            Content::Bytes(take(rest, n)?)
        }
        5 => Content::Four(take(rest, 4)?.try_into().ok()?),
        _ => return None,
    };
    Some((key >> 3, content))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

pub(super) fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
