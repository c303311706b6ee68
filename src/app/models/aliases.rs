//! The alias map: each alias with a pin on its version.

use std::{collections::BTreeMap, sync::Arc};

use super::pins::{Holder, Pin, Pins};
use crate::{
    app::AppError,
    names::{AliasName, ModelId, VersionName},
    registry::{Registry, RegistryError},
};

/// The number of models read at once.
const PAGE: usize = 256;

/// The models of a server, held in memory.
pub(super) type Aliases = BTreeMap<ModelId, CachedModel>;

/// A model.
pub(super) struct CachedModel {
    /// Its aliases, each with the pin on its version.
    pub(super) aliases: BTreeMap<AliasName, Pin>,
    /// True if its champion has heads; a detector or embedder has none.
    pub(super) has_heads: bool,
}

/// Reads the aliases of a registry. An alias that has not moved since `before` keeps its pin.
///
/// # Errors
/// When the registry cannot be read.
pub(super) fn read_aliases(registry: &Registry, before: &Aliases, pins: &Arc<Pins>) -> Result<Aliases, AppError> {
    let mut aliases = Aliases::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let models = registry.list_models(after.as_deref(), PAGE)?;
        let Some(last) = models.last() else { return Ok(aliases) };
        after = Some(last.id.as_bytes().to_vec());
        for model in models {
            let cached = before.get(&model.id);
            let pin = |(alias, &number): (&AliasName, &u64)| {
                let held = cached.and_then(|cached| cached.aliases.get(alias));
                let pin = match held.filter(|pin| pin.version().number == number) {
                    Some(pin) => pin.clone(),
                    None => {
                        let version = VersionName { model: model.id.clone(), number };
                        pins.hold_now(&version, Holder::Alias(alias.clone()))
                    }
                };
                (alias.clone(), pin)
            };
            let of_model: BTreeMap<_, _> = model.aliases.iter().map(pin).collect();
            let has_heads = of_model.get(&AliasName::champion()).is_some_and(|pin| {
                match registry.get_version(pin.version()) {
                    Ok(version) => !version.heads.is_empty(),
                    // Its caller gets an error that names it, not another model's answer.
                    Err(error) => {
                        matches!(error, RegistryError::CorruptVersion { .. } | RegistryError::VersionNotFound { .. })
                    }
                }
            });
            aliases.insert(model.id, CachedModel { aliases: of_model, has_heads });
        }
    }
}
