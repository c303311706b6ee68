//! Says what a file is when it is not a supported image.

/// Bytes of a text that are looked at.
const TEXT_BYTES: usize = 256;

/// A phrase that says what the bytes look like and what to send instead.
pub(super) fn what_is(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "there are no bytes".to_owned();
    }
    if let Some(found) = infer::get(bytes) {
        return match found.mime_type() {
            heif @ ("image/heif" | "image/heic") => {
                format!(
                    "it is {heif}, as iPhones write it; export it as JPEG, or set the camera to the most compatible format"
                )
            }
            page @ ("text/html" | "text/xml") => {
                format!(
                    "it is {page}, perhaps the page of an error or of a login, and not the picture that was asked for"
                )
            }
            picture if picture.starts_with("image/") => format!("it is {picture}; convert it to JPEG, PNG or WebP"),
            other => format!("it is {other}"),
        };
    }
    let start = &bytes[..bytes.len().min(TEXT_BYTES)];
    if start.starts_with(b"data:") {
        return "it is a data URL; send the bytes that it holds, decoded from their base64".to_owned();
    }
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(b);
    if start.len() >= 16 && start.iter().all(is_base64) {
        return "it looks like base64; send the bytes themselves".to_owned();
    }
    if start.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return "it is text".to_owned();
    }
    "its first bytes are of no known kind".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sent_something_else_reads_what_it_is() {
        let cases: [(&[u8], &str); 12] = [
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
        ];
        for (bytes, expected) in cases {
            let found = what_is(bytes);
            assert!(found.contains(expected), "{:?}: {found}", String::from_utf8_lossy(bytes));
        }
    }
}
