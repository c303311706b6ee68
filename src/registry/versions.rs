//! Registering, reading and forgetting versions.

use std::{collections::HashSet, sync::PoisonError};

use super::{
    NewVersion, Registry, RegistryError,
    manifest::{dtype, manifest_digest, partners, tensor_ref},
    name_of, version_key,
};
use crate::{
    names::{ModelId, VersionName},
    nn::TensorData,
    proto::store::VersionRecord,
    store::{Batch, Digest, Range, StoreError, StoreExt, SweepReport, Table, decode_record, join_key},
};

impl Registry {
    /// Registers a version: tensors first, then manifest, number, and `extra`'s writes in one commit. The first version
    /// of a model without a champion becomes it.
    ///
    /// # Errors
    /// [`RegistryError::VersionNotFound`] when a version that it works with is gone, and when the store fails; nothing is
    /// registered then.
    pub fn register(
        &self,
        new: NewVersion,
        mut extra: impl FnMut(&VersionRecord) -> Batch,
    ) -> Result<VersionRecord, RegistryError> {
        let _no_sweep = self.sweeping.read().unwrap_or_else(PoisonError::into_inner);
        let mut tensors = Vec::with_capacity(new.tensors.len());
        for tensor in &new.tensors {
            tensors.push(tensor_ref(tensor, &self.blobs.put(&tensor.bytes)?));
        }
        loop {
            let (mut batch, model) = self.model_writes(&new.model, None)?;
            let record = new.manifest(model.latest_version, tensors.clone());
            let key = version_key(&name_of(&record));
            batch.require_absent(Table::Versions, &key).put_record(Table::Versions, &key, &record);
            batch.extend(self.champion_writes(&new.model, record.number)?);
            for partner in partners(&record)? {
                batch.require_equals(Table::Versions, &version_key(&partner), self.version_bytes(&partner)?);
            }
            batch.extend(extra(&record));
            match self.store.commit(batch) {
                Ok(()) => return Ok(record),
                // Another version took the number or the alias meanwhile: the next number, then.
                Err(StoreError::Conflict { table: Table::Models | Table::Versions | Table::Aliases, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A version's manifest, its digest verified.
    ///
    /// # Errors
    /// [`RegistryError::ModelNotFound`], [`RegistryError::VersionNotFound`], [`RegistryError::CorruptVersion`].
    pub fn get_version(&self, version: &VersionName) -> Result<VersionRecord, RegistryError> {
        let bytes = self.version_bytes(version)?;
        let record: VersionRecord = decode_record(Table::Versions, &version_key(version), &bytes)
            .map_err(|e| RegistryError::CorruptVersion { version: version.clone(), detail: e.to_string() })?;
        if record.digest != manifest_digest(&record) {
            let detail = "its manifest differs from its digest".to_owned();
            return Err(RegistryError::CorruptVersion { version: version.clone(), detail });
        }
        Ok(record)
    }

    pub(super) fn version_bytes(&self, version: &VersionName) -> Result<Vec<u8>, RegistryError> {
        match self.store.get(Table::Versions, &version_key(version))? {
            Some(bytes) => Ok(bytes),
            None => {
                self.get_model(&version.model)?;
                Err(RegistryError::VersionNotFound { version: version.clone() })
            }
        }
    }

    /// Up to `limit` of a model's versions, newest first, below number `before`.
    ///
    /// # Errors
    /// [`RegistryError::ModelNotFound`].
    pub fn list_versions(
        &self,
        model: &ModelId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<VersionRecord>, RegistryError> {
        self.get_model(model)?;
        let after = before.map(|number| version_key(&VersionName { model: model.clone(), number }));
        let range = Range { prefix: join_key(&[model.as_bytes(), b""]), after, descending: true };
        let rows = self.store.scan_records(Table::Versions, &range, limit)?;
        Ok(rows.into_iter().map(|(_, record)| record).collect())
    }

    /// A version's tensors, each verified. Some may lie in mapped files: ask [`TensorData::is_intact`] after reading.
    ///
    /// # Errors
    /// [`RegistryError::CorruptVersion`] naming the version and the tensor.
    pub fn load_tensors(&self, record: &VersionRecord) -> Result<Vec<TensorData>, RegistryError> {
        let version = name_of(record);
        let load = |tensor: &crate::proto::store::TensorRef| {
            let corrupt = |why: String| RegistryError::CorruptVersion {
                version: version.clone(),
                detail: format!("tensor {}: {why}", tensor.name),
            };
            let digest = Digest::try_from(tensor.blob.as_slice()).map_err(|e| corrupt(e.to_string()))?;
            let bytes = self.blobs.get(&digest).map_err(|e| match e {
                StoreError::Corrupt { .. } => corrupt(e.to_string()),
                other => other.into(),
            })?;
            Ok(TensorData {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                dtype: dtype(&version, tensor)?,
                bytes,
            })
        };
        record.tensors.iter().map(load).collect()
    }

    /// Forgets a version, and the tensors that no other has.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] while an alias points at it or another version works with it.
    pub fn delete_version(&self, version: &VersionName) -> Result<(), RegistryError> {
        let turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // None that works with it comes between the look and the commit.
        let no_register = self.sweeping.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(dependent) = self.dependents(version)?.first() {
            return Err(RegistryError::InUse { what: version.to_string(), by: dependent.to_string() });
        }
        loop {
            let view = self.get_model(&version.model)?;
            if let Some((alias, _)) = view.aliases.iter().find(|(_, number)| **number == version.number) {
                let by = format!("the alias {alias}");
                return Err(RegistryError::InUse { what: version.to_string(), by });
            }
            let bytes = self.version_bytes(version)?;
            let mut batch = Batch::default();
            // `set_alias` demands the manifest in its commit, so an alias cannot come to point at a deleted version.
            batch
                .require_equals(Table::Versions, &version_key(version), bytes)
                .delete(Table::Versions, &version_key(version));
            for alias in view.aliases.keys() {
                let key = join_key(&[version.model.as_bytes(), alias.as_bytes()]);
                if let Some(value) = self.store.get(Table::Aliases, &key)? {
                    batch.require_equals(Table::Aliases, &key, value);
                }
            }
            match self.store.commit(batch) {
                Ok(()) => break,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        drop((turn, no_register));
        self.sweep_orphans()?;
        Ok(())
    }

    /// The versions that work with a version, see [`partners`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn dependents(&self, version: &VersionName) -> Result<Vec<VersionName>, RegistryError> {
        let mut dependents = Vec::new();
        self.each_version(|record| {
            // A manifest that names no version has no partner to lose.
            if partners(record).is_ok_and(|partners| partners.contains(version)) {
                dependents.push(name_of(record));
            }
        })?;
        Ok(dependents)
    }

    /// Shows every manifest, in no order that means anything.
    fn each_version(&self, mut look: impl FnMut(&VersionRecord)) -> Result<(), RegistryError> {
        for row in self.store.records::<VersionRecord>(Table::Versions, Range::default()) {
            look(&row?.1);
        }
        Ok(())
    }

    /// Removes the blobs that no manifest names.
    ///
    /// # Errors
    /// When the store fails, or a manifest is damaged: then nothing is removed, for it may have named anything.
    pub fn sweep_orphans(&self) -> Result<SweepReport, RegistryError> {
        let _no_register = self.sweeping.write().unwrap_or_else(PoisonError::into_inner);
        let mut live = HashSet::new();
        self.each_version(|record| {
            live.extend(record.tensors.iter().filter_map(|tensor| Digest::try_from(tensor.blob.as_slice()).ok()));
        })?;
        Ok(self.blobs.sweep(&live)?)
    }
}
