//! The names of collections and faces.

use std::fmt;

use super::SimilarityError;

/// A collection's id: the `policies` of `collections/policies`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CollectionId(String);

impl CollectionId {
    /// Parses an id; `field` is the request field it came from.
    ///
    /// # Errors
    /// [`SimilarityError::Invalid`].
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, SimilarityError> {
        let ok = (1..=63).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if ok {
            return Ok(Self(text.to_owned()));
        }
        let rule =
            format!("{text:?} must be 1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit");
        Err(SimilarityError::invalid(field, rule))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn name(&self) -> String {
        format!("collections/{self}")
    }
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A face's id: the `p-17` of `collections/policies/faces/p-17`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FaceId(String);

impl FaceId {
    /// Parses an id; `field` is the request field it came from.
    ///
    /// # Errors
    /// [`SimilarityError::Invalid`].
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, SimilarityError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        let rule = format!("{text:?} must be 1 to 128 letters, digits, '.', '_' and '-'");
        Err(SimilarityError::invalid(field, rule))
    }

    /// Generates an id; ids sort by time.
    pub(super) fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `collections/{c}/faces/{f}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FaceName {
    /// The collection.
    pub collection: CollectionId,
    /// The face in it.
    pub face: FaceId,
}

impl FaceName {
    /// Parses a name; `field` is the request field it came from.
    ///
    /// # Errors
    /// [`SimilarityError::Invalid`].
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, SimilarityError> {
        let parts = text.strip_prefix("collections/").and_then(|rest| rest.split_once("/faces/"));
        let (collection, face) = parts.ok_or_else(|| {
            SimilarityError::invalid(field, format!("must be collections/{{c}}/faces/{{f}}, not {text:?}"))
        })?;
        Ok(Self { collection: CollectionId::parse(field, collection)?, face: FaceId::parse(field, face)? })
    }
}

impl fmt::Display for FaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "collections/{}/faces/{}", self.collection, self.face)
    }
}
