//! Page sizes and page tokens (AIP-158).
//!
//! A token is the last key of a page with a checksum over key and list. So a made-up token, or one of another list, is
//! refused.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::AppError;

/// The page that a caller requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRequest<'a> {
    /// The requested size; 0 means the default.
    pub size: i32,
    /// The requested token; empty means the first page.
    pub token: &'a str,
}

/// The bounds of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageLimits {
    /// The page size if the caller sends none.
    pub default_size: usize,
    /// The largest page size.
    pub max_size: usize,
}

/// A checked request: the list, the page's size and the key before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The list's name, including its parent and filter.
    pub list: String,
    /// The page's size, 1 or more.
    pub size: usize,
    /// The last key of the previous page.
    pub after: Option<Vec<u8>>,
}

/// A page of entries and the next page's token.
#[derive(Clone, Debug)]
pub(crate) struct Paged<T> {
    /// The entries, at most the page's size.
    pub items: Vec<T>,
    /// The token; empty on the last page.
    pub next_page_token: String,
}

impl<T> Paged<T> {
    /// Converts the entries.
    pub(crate) fn map<U>(self, f: impl FnMut(T) -> U) -> Paged<U> {
        Paged { items: self.items.into_iter().map(f).collect(), next_page_token: self.next_page_token }
    }
}

impl Page {
    /// Checks size and token; `list` is the list's name, including its parent and filter.
    ///
    /// # Errors
    /// [`AppError::FieldInvalid`] for a negative size, [`AppError::PageTokenInvalid`] for a token not of this list.
    pub(crate) fn parse(request: PageRequest<'_>, limits: PageLimits, list: String) -> Result<Self, AppError> {
        let size = match usize::try_from(request.size) {
            Err(_) => return Err(AppError::field("page_size", "must not be negative")),
            Ok(0) => limits.default_size,
            Ok(n) => n.min(limits.max_size),
        };
        let after = if request.token.is_empty() { None } else { Some(decode_token(request.token, &list)?) };
        Ok(Self { list, size, after })
    }

    /// The number of entries to read: one more than the page holds, which shows whether another page follows.
    #[must_use]
    pub(crate) fn limit(&self) -> usize {
        self.size + 1
    }

    /// Cuts the entries, read with [`Page::limit`], down to the page.
    pub(crate) fn finish<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> Vec<u8>) -> Paged<T> {
        let more = items.len() > self.size;
        items.truncate(self.size);
        let next_page_token = match items.last() {
            Some(last) if more => encode_token(&key(last), &self.list),
            _ => String::new(),
        };
        Paged { items, next_page_token }
    }
}

fn checksum(key: &[u8], list: &str) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(list.as_bytes());
    hasher.update(&[0]);
    hasher.update(key);
    hasher.finalize().to_be_bytes()
}

fn encode_token(key: &[u8], list: &str) -> String {
    let mut bytes = checksum(key, list).to_vec();
    bytes.extend_from_slice(key);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode_token(token: &str, list: &str) -> Result<Vec<u8>, AppError> {
    let invalid = || AppError::PageTokenInvalid { list: list.to_owned() };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let (sum, key) = bytes.split_at_checked(4).ok_or_else(invalid)?;
    if sum == checksum(key, list) { Ok(key.to_vec()) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: PageLimits = PageLimits { default_size: 2, max_size: 3 };

    #[test]
    fn sizes_are_bounded() {
        let parse = |size| Page::parse(PageRequest { size, token: "" }, LIMITS, "faces".to_owned());
        assert_eq!(parse(0).unwrap().size, 2);
        assert_eq!(parse(1_000_000).unwrap().size, 3);
        assert!(matches!(parse(-1), Err(AppError::FieldInvalid { .. })));
    }

    proptest! {
        #[test]
        fn a_token_leads_to_its_own_list_only(key in proptest::collection::vec(any::<u8>(), 1..40)) {
            let token = encode_token(&key, "faces/a");
            prop_assert_eq!(decode_token(&token, "faces/a").unwrap(), key);
            prop_assert!(decode_token(&token, "faces/b").is_err());
        }

        #[test]
        fn made_up_tokens_are_refused(token in "[a-zA-Z0-9_-]{1,40}") {
            // A guess passes with probability 1 in 2^32; none of these does.
            prop_assert!(decode_token(&token, "faces/a").is_err());
        }
    }
}
