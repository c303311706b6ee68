//! The names of models, versions, aliases and embedding spaces.
//!
//! Every layer, from the executor's queues to the edge, names a version by these types. A name is parsed once, where it
//! enters; below that it is never a string. Depends on nothing else in the crate.

use std::{fmt, sync::Arc};

/// The longest model id or alias: the limit of a DNS label.
const MAX_ID_BYTES: usize = 63;

const ID_RULE: &str = "must be 1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit";

/// A text that is not a valid name of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} {rule}")]
pub(crate) struct InvalidName {
    /// The request's field.
    pub field: String,
    /// The text as received.
    pub value: String,
    /// What is allowed.
    pub rule: &'static str,
}

fn parse_id(field: &str, text: &str) -> Result<Arc<str>, InvalidName> {
    let ok = !text.is_empty()
        && text.len() <= MAX_ID_BYTES
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if ok {
        Ok(text.into())
    } else {
        Err(InvalidName { field: field.to_owned(), value: text.to_owned(), rule: ID_RULE })
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) struct $name(Arc<str>);

        impl $name {
            /// Parses an id; `field` is the request field, for the error.
            ///
            /// # Errors
            /// [`InvalidName`] for any other text.
            pub(crate) fn parse(field: &str, text: &str) -> Result<Self, InvalidName> {
                parse_id(field, text).map(Self)
            }

            pub(crate) fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A model's id: the `age` of `models/age`.
    ModelId
}

id! {
    /// An alias of a version: the `champion` of `models/age@champion`.
    AliasName
}

impl ModelId {
    /// Wraps an id that was checked before it was stored.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.into())
    }
}

impl AliasName {
    /// Returns the alias used when a reference names none.
    #[must_use]
    pub(crate) fn champion() -> Self {
        Self("champion".into())
    }
}

/// The longest id of a training run.
const MAX_RUN_ID_BYTES: usize = 64;

/// A training run's id: the `0193a5` of `trainingRuns/0193a5`, and of `operations/0193a5`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RunId(Arc<str>);

impl RunId {
    /// Parses a run id; returns `None` for an invalid one.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let ok = !text.is_empty()
            && text.len() <= MAX_RUN_ID_BYTES
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ok.then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A version's name: `models/{model}/versions/{n}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct VersionName {
    /// The model.
    pub model: ModelId,
    /// The version's number, from 1.
    pub number: u64,
}

impl VersionName {
    /// Parses `models/{model}/versions/{n}`; `field` is the request field, for the error.
    ///
    /// # Errors
    /// [`InvalidName`] for any other text, an alias included.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, InvalidName> {
        match ModelRef::parse(field, text)? {
            ModelRef::Version(version) => Ok(version),
            ModelRef::Alias { .. } => Err(InvalidName {
                field: field.to_owned(),
                value: text.to_owned(),
                rule: "must be models/{model}/versions/{n}",
            }),
        }
    }
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "models/{}/versions/{}", self.model, self.number)
    }
}

/// A reference to a version: its number, or an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelRef {
    /// `models/{model}/versions/{n}`.
    Version(VersionName),
    /// `models/{model}@{alias}`; `models/{model}` means the alias `champion`.
    Alias {
        /// The model.
        model: ModelId,
        /// The alias.
        alias: AliasName,
    },
}

impl ModelRef {
    /// Parses a reference; `field` is the request field, for the error.
    ///
    /// # Errors
    /// [`InvalidName`] for any other text.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            field: field.to_owned(),
            value: text.to_owned(),
            rule: "must be models/{model}, models/{model}/versions/{n} or models/{model}@{alias}",
        };
        let rest = text.strip_prefix("models/").ok_or_else(invalid)?;
        if let Some((model, number)) = rest.split_once("/versions/") {
            let plain = !number.is_empty() && !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse().ok().filter(|_| plain).ok_or_else(invalid)?;
            return Ok(Self::Version(VersionName { model: ModelId::parse(field, model)?, number }));
        }
        let (model, alias) = match rest.split_once('@') {
            Some((model, alias)) => (model, AliasName::parse(field, alias)?),
            None => (rest, AliasName::champion()),
        };
        Ok(Self::Alias { model: ModelId::parse(field, model)?, alias })
    }

    /// Parses a reference; returns `None` for an empty text.
    ///
    /// # Errors
    /// As [`ModelRef::parse`].
    pub(crate) fn parse_optional(field: &str, text: &str) -> Result<Option<Self>, InvalidName> {
        if text.is_empty() { Ok(None) } else { Self::parse(field, text).map(Some) }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => version.fmt(f),
            Self::Alias { model, alias } => write!(f, "models/{model}@{alias}"),
        }
    }
}

/// The name of an embedding space: `models/{model}/versions/{n}#{layer}`. Only embeddings of one space can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EmbeddingSpace {
    /// The version that computes the embeddings.
    pub version: VersionName,
    /// The layer of its network that outputs them.
    pub layer: Arc<str>,
}

impl EmbeddingSpace {
    /// Parses `models/{model}/versions/{n}#{layer}`; `field` is the request field, for the error.
    ///
    /// # Errors
    /// [`InvalidName`] for any other text.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            field: field.to_owned(),
            value: text.to_owned(),
            rule: "must be models/{model}/versions/{n}#{layer}",
        };
        let (version, layer) = text.split_once('#').filter(|(_, layer)| !layer.is_empty()).ok_or_else(invalid)?;
        let version = VersionName::parse(field, version).map_err(|_| invalid())?;
        Ok(Self { version, layer: layer.into() })
    }
}

impl fmt::Display for EmbeddingSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.version, self.layer)
    }
}

/// A reference to an embedding space; version and layer have defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpaceRef {
    /// The version; `None` means the default model's champion.
    pub version: Option<ModelRef>,
    /// The layer; `None` means the space that the version is paired with, or else its own first layer.
    pub layer: Option<Arc<str>>,
}

impl SpaceRef {
    /// Parses `{version}#{layer}`, `{version}`, `#{layer}` or an empty text; `field` is the request field, for the
    /// error.
    ///
    /// # Errors
    /// [`InvalidName`] for any other text.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, InvalidName> {
        let (version, layer) = match text.split_once('#') {
            Some((_, "")) => {
                return Err(InvalidName {
                    field: field.to_owned(),
                    value: text.to_owned(),
                    rule: "must name a layer behind the #",
                });
            }
            Some((version, layer)) => (version, Some(layer.into())),
            None => (text, None),
        };
        Ok(Self { version: ModelRef::parse_optional(field, version)?, layer })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_are_strict() {
        let parse = |text| ModelRef::parse("model", text);
        assert_eq!(parse("models/age").unwrap().to_string(), "models/age@champion");
        for wrong in [
            "",
            "age",
            "models/",
            "models/Age",
            "models/-a",
            "models/age/versions/",
            "models/age/versions/0",
            "models/age/versions/01",
            "models/age/versions/+1",
            "models/age/versions/99999999999999999999",
            "models/age@",
            "models/age@a b",
            "models/a/b",
            "models/age/versions/1/x",
            "models/\u{e4}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(model in "[a-z0-9][a-z0-9-]{0,62}", alias in "[a-z0-9][a-z0-9-]{0,62}", number in 1u64..) {
            let version = ModelRef::parse("m", &format!("models/{model}/versions/{number}")).unwrap();
            prop_assert_eq!(ModelRef::parse("m", &version.to_string()).unwrap(), version);
            let aliased = ModelRef::parse("m", &format!("models/{model}@{alias}")).unwrap();
            prop_assert_eq!(ModelRef::parse("m", &aliased.to_string()).unwrap(), aliased);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            let _ = ModelRef::parse("m", &text);
        }
    }
}
