//! Models, their immutable versions, and the aliases that point at them.
//!
//! A version is a manifest that names everything that determines its answers. Its tensors are blobs, shared by all
//! versions with the same ones. Loading onto a device belongs to the serving layer.

mod error;
mod manifest;
mod origin;
mod reads;
mod version;
mod versions;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use parking_lot::{Mutex, RwLock};

pub(crate) use error::RegistryError;
pub(crate) use manifest::NewVersion;
pub(crate) use origin::Origin;
pub(crate) use reads::{Normalised, Reads};
pub(crate) use version::{AnswerKind, Head, Interval, Version, published_network};

use crate::{
    names::{AliasName, ModelId, VersionName},
    proto::{
        store::{AliasRecord, ModelRecord, VersionRecord},
        v1,
    },
    store::{Batch, Blobs, Range, Store, StoreError, StoreExt, Table, decode_record, encode_record, join_key},
};

/// A model with its aliases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    /// Its id.
    pub id: ModelId,
    /// The version number that each alias points at.
    pub aliases: BTreeMap<AliasName, u64>,
    record: ModelRecord,
}

impl Model {
    /// Converts to the contract's form.
    #[must_use]
    pub(crate) fn describe(&self) -> v1::Model {
        let name = format!("models/{}", self.id);
        v1::Model {
            create_time: self.record.create_time,
            aliases: self
                .aliases
                .iter()
                .map(|(alias, n)| (alias.to_string(), format!("{name}/versions/{n}")))
                .collect(),
            latest_version: i64::try_from(self.record.latest_version).unwrap_or(i64::MAX),
            name,
        }
    }
}

/// The registry in a store. Its methods block.
pub(crate) struct Registry {
    store: Arc<dyn Store>,
    blobs: Arc<dyn Blobs>,
    /// Read-locked while writing blobs and their manifest; write-locked while a sweep looks for blobs without a
    /// manifest.
    sweeping: RwLock<()>,
    /// Locked while setting an alias or deleting a version, so that no alias can point at a deleted version.
    changing: Mutex<()>,
}

impl Registry {
    /// Creates a registry in `store`, with the tensors in `blobs`.
    #[must_use]
    pub(crate) fn new(store: Arc<dyn Store>, blobs: Arc<dyn Blobs>) -> Self {
        Self { store, blobs, sweeping: RwLock::new(()), changing: Mutex::new(()) }
    }

    /// Returns the store.
    #[must_use]
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Returns a model with its aliases.
    ///
    /// # Errors
    /// [`RegistryError::ModelNotFound`].
    pub(crate) fn get_model(&self, model: &ModelId) -> Result<Model, RegistryError> {
        let record = self
            .store
            .get_record::<ModelRecord>(Table::Models, model.as_bytes())?
            .ok_or_else(|| RegistryError::ModelNotFound { model: model.clone() })?;
        self.view(record)
    }

    fn view(&self, record: ModelRecord) -> Result<Model, RegistryError> {
        let prefix = join_key(&[record.id.as_bytes(), b""]);
        let range = Range { prefix: prefix.clone(), ..Range::default() };
        let mut aliases = BTreeMap::new();
        for (key, alias) in self.store.scan_records::<AliasRecord>(Table::Aliases, &range, usize::MAX)? {
            let name = String::from_utf8_lossy(&key[prefix.len()..]);
            aliases.insert(AliasName::parse("alias", &name)?, alias.version);
        }
        Ok(Model { id: ModelId::stored(&record.id), aliases, record })
    }

    /// Returns up to `limit` models, by id, after the id `after`.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn list_models(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Model>, RegistryError> {
        let range = Range { after: after.map(<[u8]>::to_vec), ..Range::default() };
        let rows = self.store.scan_records::<ModelRecord>(Table::Models, &range, limit)?;
        rows.into_iter().map(|(_, record)| self.view(record)).collect()
    }

    /// Points an alias at a version, or removes it.
    ///
    /// With `expected`, only if the alias points there now (`Some(None)`: only if there is no alias). `extra` adds
    /// writes to the same commit. Returns the changed model.
    ///
    /// # Errors
    /// [`RegistryError::AliasMoved`] when the alias does not point at `expected`; `NotFound` for the model, the version
    /// or, on removal, the alias.
    pub(crate) fn set_alias(
        &self,
        model: &ModelId,
        alias: &AliasName,
        version: Option<u64>,
        expected: Option<Option<u64>>,
        extra: impl Fn(&Model) -> Batch,
    ) -> Result<Model, RegistryError> {
        let key = join_key(&[model.as_bytes(), alias.as_bytes()]);
        let _changing = self.changing.lock();
        loop {
            let mut view = self.get_model(model)?;
            // Read once, so that the value compared with `expected` is also the condition of the commit.
            let stored = self.store.get(Table::Aliases, &key)?;
            let found = match &stored {
                Some(value) => Some(decode_record::<AliasRecord>(Table::Aliases, &key, value)?.version),
                None => None,
            };
            if let Some(expected) = expected.filter(|expected| *expected != found) {
                return Err(RegistryError::AliasMoved { model: model.clone(), alias: alias.clone(), expected, found });
            }
            let mut batch = Batch::default();
            match &stored {
                Some(value) => batch.require_equals(Table::Aliases, &key, value.clone()),
                None => batch.require_absent(Table::Aliases, &key),
            };
            match version {
                Some(number) => {
                    // The version must still exist at the commit.
                    let name = VersionName { model: model.clone(), number };
                    let manifest = self.version_bytes(&name)?;
                    batch.require_equals(Table::Versions, &version_key(&name), manifest);
                    let record = AliasRecord { version: number, update_time: Some(SystemTime::now().into()) };
                    batch.put_record(Table::Aliases, &key, &record);
                    view.aliases.insert(alias.clone(), number);
                }
                None => {
                    if found.is_none() {
                        return Err(RegistryError::AliasNotFound { model: model.clone(), alias: alias.clone() });
                    }
                    batch.delete(Table::Aliases, &key);
                    view.aliases.remove(alias);
                }
            }
            batch.extend(extra(&view));
            match self.store.commit(batch) {
                Ok(()) => return Ok(view),
                // The alias or the version changed since it was read: try again.
                Err(StoreError::Conflict { table: Table::Aliases | Table::Versions, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns the writes that create a model if absent, and set its latest version to `number` or the next number.
    fn model_writes(&self, model: &ModelId, number: Option<u64>) -> Result<(Batch, ModelRecord), RegistryError> {
        let stored = self.store.get(Table::Models, model.as_bytes())?;
        let mut batch = Batch::default();
        let mut record = match &stored {
            Some(value) => {
                batch.require_equals(Table::Models, model.as_bytes(), value.clone());
                decode_record(Table::Models, model.as_bytes(), value)?
            }
            None => {
                batch.require_absent(Table::Models, model.as_bytes());
                ModelRecord { id: model.to_string(), create_time: Some(SystemTime::now().into()), latest_version: 0 }
            }
        };
        record.latest_version = number.unwrap_or(record.latest_version + 1);
        batch.put_record(Table::Models, model.as_bytes(), &record);
        Ok((batch, record))
    }

    /// Returns the writes that make version `number` the champion, if the model has none.
    fn champion_writes(&self, model: &ModelId, number: u64) -> Result<Batch, RegistryError> {
        let key = join_key(&[model.as_bytes(), AliasName::champion().as_bytes()]);
        let mut batch = Batch::default();
        if self.store.get(Table::Aliases, &key)?.is_none() {
            let record = AliasRecord { version: number, update_time: Some(SystemTime::now().into()) };
            batch.require_absent(Table::Aliases, &key);
            batch.writes.push(crate::store::Write::Put(Table::Aliases, key, encode_record(&record)));
        }
        Ok(batch)
    }
}

/// Returns the key of a version in its table.
fn version_key(version: &VersionName) -> Vec<u8> {
    join_key(&[version.model.as_bytes(), &version.number.to_be_bytes()])
}

/// Returns the name of a stored version.
fn name_of(record: &VersionRecord) -> VersionName {
    VersionName { model: ModelId::stored(&record.model), number: record.number }
}

#[cfg(test)]
mod tests;
