//! Page sizes and page tokens (AIP-158).
//!
//! A token is the last key of a page with an authentication code over list and key. So a made-up token, or one of
//! another list or server, is refused.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::AppError;
use crate::{
    proto::store::SecretsRecord,
    store::{Batch, SECRETS_KEY, Store, StoreError, StoreExt, Table},
};

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
    /// Authenticates page tokens.
    pub key: PageKey,
}

/// The secret key of a store's page tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageKey([u8; 32]);

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey")
    }
}

impl PageKey {
    /// Returns the store's key, made at the first call. Tokens stay valid when the server is started again.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn of(store: &dyn Store) -> Result<Self, StoreError> {
        let stored = store.get_record::<SecretsRecord>(Table::Meta, SECRETS_KEY)?;
        if let Some(key) = stored.and_then(|secrets| secrets.page_tokens.try_into().ok()) {
            return Ok(Self(key));
        }
        let key: [u8; 32] = rand::random();
        let mut batch = Batch::default();
        batch.put_record(Table::Meta, SECRETS_KEY, &SecretsRecord { page_tokens: key.to_vec() });
        match store.commit(batch) {
            // If the key cannot be stored now, the tokens are valid until the server stops.
            Err(error) if !error.is_refusal() => Err(error),
            _ => Ok(Self(key)),
        }
    }

    fn mac(&self, key: &[u8], list: &str) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length");
        mac.update(list.as_bytes());
        mac.update(&[0]);
        mac.update(key);
        mac
    }
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
    key: PageKey,
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
        let after =
            if request.token.is_empty() { None } else { Some(decode_token(request.token, &list, &limits.key)?) };
        Ok(Self { list, size, after, key: limits.key })
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
            Some(last) if more => encode_token(&key(last), &self.list, &self.key),
            _ => String::new(),
        };
        Paged { items, next_page_token }
    }
}

/// The bytes of a token's authentication code: half of an HMAC-SHA-256, which RFC 2104 allows.
const MAC_BYTES: usize = 16;

fn encode_token(last: &[u8], list: &str, key: &PageKey) -> String {
    let mut bytes = key.mac(last, list).finalize().into_bytes()[..MAC_BYTES].to_vec();
    bytes.extend_from_slice(last);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode_token(token: &str, list: &str, key: &PageKey) -> Result<Vec<u8>, AppError> {
    let invalid = || AppError::PageTokenInvalid { list: list.to_owned() };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let (mac, last) = bytes.split_at_checked(MAC_BYTES).ok_or_else(invalid)?;
    // Takes the same time for every code, so that it cannot be guessed byte by byte.
    key.mac(last, list).verify_truncated_left(mac).map_err(|_| invalid())?;
    Ok(last.to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::MemoryStore;

    const KEY: PageKey = PageKey([7; 32]);
    const LIMITS: PageLimits = PageLimits { default_size: 2, max_size: 3, key: KEY };

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
            let token = encode_token(&key, "faces/a", &KEY);
            prop_assert_eq!(decode_token(&token, "faces/a", &KEY).unwrap(), key);
            prop_assert!(decode_token(&token, "faces/b", &KEY).is_err());
            prop_assert!(decode_token(&token, "faces/a", &PageKey([8; 32])).is_err(), "another server's token");
        }

        #[test]
        fn made_up_tokens_are_refused(token in "[a-zA-Z0-9_-]{1,40}") {
            prop_assert!(decode_token(&token, "faces/a", &KEY).is_err());
        }
    }

    #[test]
    fn a_store_keeps_its_key() {
        let store = MemoryStore::new();
        let key = PageKey::of(&store).unwrap();
        assert_eq!(PageKey::of(&store).unwrap(), key);
        assert_ne!(PageKey::of(&MemoryStore::new()).unwrap(), key);
    }
}
