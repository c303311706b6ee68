//! Identifies files that are not supported images, for error messages.

/// The number of leading bytes that are checked for text.
const TEXT_BYTES: usize = 256;

/// Names what the bytes look like and what to send instead.
pub(super) fn what_is(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "there are no bytes".to_owned();
    }
    if let Some(found) = infer::get(bytes) {
        return match found.mime_type() {
            heif @ ("image/heif" | "image/heic") => {
                format!(
                    "it is {heif}, the format of iPhones; export it as JPEG, or set the camera to the most compatible format"
                )
            }
            page @ ("text/html" | "text/xml") => {
                format!("it is {page}, perhaps an error or login page instead of the expected image")
            }
            ours @ ("image/jpeg" | "image/png" | "image/webp") => {
                format!("it starts like {ours} but is damaged, perhaps by a text-mode transfer")
            }
            picture if picture.starts_with("image/") => format!("it is {picture}; convert it to JPEG, PNG or WebP"),
            other => format!("it is {other}"),
        };
    }
    match &bytes[..bytes.len().min(TEXT_BYTES)] {
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
            "it is a format of the MP4 family, like HEIC and AVIF; export it as JPEG".to_owned()
        }
        start => what_text_is(start).unwrap_or("its first bytes match no known format").to_owned(),
    }
}

/// Identifies text; returns `None` for other bytes.
fn what_text_is(start: &[u8]) -> Option<&'static str> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let text = text.strip_prefix(b"\"").unwrap_or(text);
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/-_=\"\r\n".contains(b);
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    if begins(b"data:") {
        Some("it is a data URL; decode its base64 and send the bytes")
    } else if begins(b"<svg") {
        Some("it is SVG, which has no pixels; send a photo as JPEG, PNG or WebP")
    } else if begins(b"<!doctype html") || begins(b"<html") {
        Some("it is a web page, perhaps an error or login page instead of the expected image")
    } else if text.len() >= 16 && text.iter().all(u8::is_ascii_hexdigit) {
        Some("it is hexadecimal text; decode it and send the bytes")
    } else if text.len() >= 16 && text.iter().all(is_base64) {
        Some("it looks like base64; decode it and send the bytes")
    } else {
        // A character may be cut at the end.
        let is_text = std::str::from_utf8(text).map_or_else(|error| error.error_len().is_none(), |_| true);
        (is_text && !text.contains(&0)).then_some("it is text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sent_something_else_reads_what_it_is() {
        let cases: [(&[u8], &str); 18] = [
            (b"", "no bytes"),
            (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "export it as JPEG"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/hei"),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "image/avif"),
            (b"GIF89a\x01\0\x01\0\0\0\0", "image/gif"),
            (b"BM\x9a\0\0\0\0\0\0\0", "image/bmp"),
            (b"II*\0\x08\0\0\0\0\0\0\0", "image/tiff"),
            (b"%PDF-1.7\n", "application/pdf"),
            (b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html"),
            (b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgID", "base64"),
            (b"data:image/jpeg;base64,/9j/4AAQ", "data URL"),
            (b"{\"error\": \"not found\"}", "text"),
            ("schöne Grüße aus Köln".as_bytes(), "text"),
            (b"\0\0\0\x18ftypheic", "export it as JPEG"),
            (b"ffd8ffe000104a46494600010100", "hexadecimal"),
            (b" \"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMC\"", "base64"),
            (b"\xef\xbb\xbf<!DOCTYPE html><html>", "web page"),
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
        ];
        for (bytes, expected) in cases {
            let found = what_is(bytes);
            assert!(found.contains(expected), "{:?}: {found}", String::from_utf8_lossy(bytes));
        }
    }
}
