//! Seals bytes under a key, so that they can be read only as long as the key exists.
//!
//! ChaCha20-Poly1305 (RFC 8439). A sealed value is a random nonce, the encrypted bytes and a tag. Its context, which
//! says where the value belongs, is authenticated but not stored: a value that was moved cannot be unsealed.

use std::fmt;

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// The bytes by which sealing makes a value longer.
pub(super) const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// A secret key. Its bytes are overwritten when it is dropped.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Makes a random key.
    #[must_use]
    pub(crate) fn random() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    pub(super) fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Returns the HMAC-SHA-256 of a purpose and a value. Nobody can guess it, or confirm a guess of the value, without
    /// the key.
    #[must_use]
    pub(crate) fn mac(&self, purpose: &str, value: &[u8]) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*self.0));
        mac.update(purpose.as_bytes());
        mac.update(&[0]);
        mac.update(value);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(mac.sign().as_ref());
        bytes
    }

    /// Derives a key from this one and another: without either, nobody has it.
    #[must_use]
    pub(crate) fn with(&self, purpose: &str, other: &Self) -> Self {
        Self::from_bytes(self.mac(purpose, other.bytes()))
    }

    /// Seals bytes for this context.
    #[must_use]
    pub(crate) fn seal(&self, context: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let mut sealed = Vec::with_capacity(plain.len() + SEAL_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        #[expect(clippy::expect_used, reason = "only 256 GiB are too long")]
        let tag = self
            .cipher()
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut sealed[NONCE_BYTES..],
            )
            .expect("short enough");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Returns the bytes that were sealed under this key for this context; `None` for anything else. They are
    /// overwritten when they are dropped.
    #[must_use]
    pub(crate) fn unseal(&self, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let mut plain = Zeroizing::new(rest.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let n_bytes = self.cipher().open_in_place(nonce, Aad::from(context), &mut plain).ok()?.len();
        plain.truncate(n_bytes);
        Some(plain)
    }

    fn cipher(&self) -> LessSafeKey {
        #[expect(clippy::expect_used, reason = "the length of a key is that of the cipher's")]
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &*self.0).expect("32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 8439, section 2.8.2.
    #[test]
    fn the_published_example_is_unsealed() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
        };
        let key = Key::from_bytes(std::array::from_fn(|i| 0x80 + i as u8));
        let nonce = hex("070000004041424344454647");
        let encrypted = hex(concat!(
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6",
            "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36",
            "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc",
            "3ff4def08e4b7a9de576d26586cec64b6116",
        ));
        let tag = hex("1ae10b594f09e26a7e902ecbd0600691");
        let plain = key.unseal(&hex("50515253c0c1c2c3c4c5c6c7"), &[nonce, encrypted, tag].concat()).unwrap();
        assert!(plain.starts_with(b"Ladies and Gentlemen of the class of '99"));
    }

    proptest! {
        #[test]
        fn only_the_same_key_context_and_bytes_unseal(
            plain in prop::collection::vec(any::<u8>(), 0..90),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let key = Key::random();
            let mut sealed = key.seal(b"here", &plain);
            prop_assert_eq!(sealed.len(), plain.len() + SEAL_BYTES);
            prop_assert_eq!(&**key.unseal(b"here", &sealed).unwrap(), &plain);
            prop_assert!(key.unseal(b"there", &sealed).is_none());
            prop_assert!(Key::random().unseal(b"here", &sealed).is_none());
            prop_assert!(key.with("x", &Key::random()).unseal(b"here", &sealed).is_none());
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(key.unseal(b"here", &sealed).is_none());
            prop_assert!(key.unseal(b"here", &sealed[..at]).is_none());
        }
    }
}
