//! Registers, reads and deletes versions.

use std::collections::HashSet;

use super::{
    NewVersion, Registry, RegistryError, Version,
    manifest::{dtype, manifest_digest, tensor_ref},
    name_of,
    version::describe,
    version_key,
};
use crate::{
    names::{EmbeddingSpace, ModelId, VersionName},
    nn::TensorData,
    proto::{store::VersionRecord, v1},
    store::{Batch, Digest, Range, StoreError, StoreExt, SweepReport, Table, decode_record, join_key, record_payload},
};

impl Registry {
    /// Registers a version: first the tensors, then manifest, number, and `extra`'s writes in one commit. If the model
    /// has no champion, the version becomes it.
    ///
    /// # Errors
    /// [`RegistryError::VersionNotFound`] when a dependency was deleted; errors of the store. Then nothing is
    /// registered.
    pub(crate) fn register(
        &self,
        new: NewVersion,
        mut extra: impl FnMut(&Version) -> Batch,
    ) -> Result<Version, RegistryError> {
        let _no_sweep = self.sweeping.read();
        let mut tensors = Vec::with_capacity(new.tensors.len());
        for tensor in &new.tensors {
            tensors.push(tensor_ref(tensor, &self.blobs.put(&tensor.bytes)?));
        }
        loop {
            let (mut batch, model) = self.model_writes(&new.model, None)?;
            let record = new.manifest(model.latest_version, tensors.clone());
            let name = name_of(&record);
            let key = version_key(&name);
            batch.require_absent(Table::Versions, &key).put_record(Table::Versions, &key, &record);
            batch.extend(self.champion_writes(&new.model, record.number)?);
            let version = Version::parse(name, record)?;
            for dependency in version.dependencies() {
                batch.require_equals(Table::Versions, &version_key(&dependency), self.version_bytes(&dependency)?);
            }
            batch.extend(extra(&version));
            match self.store.commit(batch) {
                Ok(()) => return Ok(version),
                // Another version took the number or the alias meanwhile: try the next number.
                Err(StoreError::Conflict { table: Table::Models | Table::Versions | Table::Aliases, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns a version, after verifying its manifest's digest.
    ///
    /// # Errors
    /// [`RegistryError::ModelNotFound`], [`RegistryError::VersionNotFound`], [`RegistryError::CorruptVersion`],
    /// [`RegistryError::UnsupportedVersion`].
    pub(crate) fn get_version(&self, version: &VersionName) -> Result<Version, RegistryError> {
        let corrupt = |detail: String| RegistryError::CorruptVersion { version: version.clone(), detail };
        let bytes = self.version_bytes(version)?;
        let key = version_key(version);
        let record: VersionRecord = decode_record(Table::Versions, &key, &bytes).map_err(|e| corrupt(e.to_string()))?;
        let payload = record_payload(Table::Versions, &key, &bytes).map_err(|e| corrupt(e.to_string()))?;
        let digest = manifest_digest(payload).map_err(|e| corrupt(e.to_string()))?;
        if record.digest != digest.as_bytes() {
            return Err(corrupt("its manifest differs from its digest".to_owned()));
        }
        Version::parse(version.clone(), record)
    }

    /// Describes a version, without load state and aliases; even one that cannot be used.
    ///
    /// # Errors
    /// [`RegistryError::ModelNotFound`], [`RegistryError::VersionNotFound`], [`RegistryError::CorruptVersion`].
    pub(crate) fn describe_version(&self, version: &VersionName) -> Result<v1::ModelVersion, RegistryError> {
        match self.get_version(version) {
            Ok(version) => Ok(version.describe()),
            Err(RegistryError::UnsupportedVersion { .. }) => {
                let record = decode_record(Table::Versions, &version_key(version), &self.version_bytes(version)?)?;
                Ok(describe(version, &record))
            }
            Err(error) => Err(error),
        }
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

    /// Describes up to `limit` of a model's versions, newest first, with numbers below `before`.
    ///
    /// # Errors
    /// [`RegistryError::ModelNotFound`].
    pub(crate) fn list_versions(
        &self,
        model: &ModelId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(VersionName, v1::ModelVersion)>, RegistryError> {
        let listed = |record: VersionRecord| {
            let name = name_of(&record);
            let description = describe(&name, &record);
            (name, description)
        };
        Ok(self.records_of(model, before, limit)?.into_iter().map(listed).collect())
    }

    /// Returns the newest version of a model that was made from a published entry, if there is one.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn find_published(
        &self,
        model: &ModelId,
        published_as: &str,
    ) -> Result<Option<VersionName>, RegistryError> {
        let range = Range { prefix: join_key(&[model.as_bytes(), b""]), descending: true, ..Range::default() };
        for row in self.store.readable_records::<VersionRecord>(Table::Versions, range) {
            let (_, record) = row?;
            if record.published_as == published_as {
                return Ok(Some(name_of(&record)));
            }
        }
        Ok(None)
    }

    fn records_of(
        &self,
        model: &ModelId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<VersionRecord>, RegistryError> {
        self.get_model(model)?;
        let after = before.map(|number| version_key(&VersionName { model: model.clone(), number }));
        let range = Range { prefix: join_key(&[model.as_bytes(), b""]), after, descending: true };
        let rows = self.store.readable_records(Table::Versions, range).take(limit);
        Ok(rows.map(|row| row.map(|(_, record)| record)).collect::<Result<_, _>>()?)
    }

    /// Returns a version's tensors, each verified. Some may be in mapped files: check [`TensorData::is_intact`] after
    /// reading.
    ///
    /// # Errors
    /// [`RegistryError::CorruptVersion`], which names the version and the tensor.
    pub(crate) fn load_tensors(&self, version: &Version) -> Result<Vec<TensorData>, RegistryError> {
        let (record, version) = (&version.record, &version.name);
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
                dtype: dtype(version, tensor)?,
                bytes,
            })
        };
        record.tensors.iter().map(load).collect()
    }

    /// Returns true if the store has lost tensors of a version.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn lacks_tensors(&self, version: &Version) -> Result<bool, RegistryError> {
        for tensor in &version.record.tensors {
            if self.store.get(Table::Blobs, &tensor.blob)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Stores the tensors of a registered version again. Others are ignored: a version never changes.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn restore_tensors(&self, version: &Version, tensors: &[TensorData]) -> Result<(), RegistryError> {
        let _no_sweep = self.sweeping.read();
        let is_its = |tensor: &&TensorData| {
            let digest = Digest::of(&tensor.bytes);
            version.record.tensors.iter().any(|own| own.blob == digest.as_bytes())
        };
        for tensor in tensors.iter().filter(is_its) {
            self.blobs.put(&tensor.bytes)?;
        }
        Ok(())
    }

    /// Deletes a version, and the tensors that no other version has.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] while an alias points at it or another version depends on it.
    pub(crate) fn delete_version(&self, version: &VersionName) -> Result<(), RegistryError> {
        let changing = self.changing.lock();
        // So that no dependent version is registered between the check and the commit.
        let no_register = self.sweeping.write();
        if let Some(dependent) = self.dependent(version)? {
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
            // `set_alias` requires the manifest in its commit, so no alias can point at a deleted version.
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
        drop((changing, no_register));
        self.sweep_orphans()?;
        Ok(())
    }

    /// Returns a version that depends on this one, if there is any.
    fn dependent(&self, version: &VersionName) -> Result<Option<VersionName>, RegistryError> {
        for row in self.store.readable_records::<VersionRecord>(Table::Versions, Range::default()) {
            let (_, record) = row?;
            let chip = record.preprocessing.as_ref().and_then(|p| p.face_chip.as_ref());
            let depends = chip.is_some_and(|chip| {
                let space = EmbeddingSpace::parse("space", &chip.embedding_space);
                VersionName::parse("detector", &chip.detector).is_ok_and(|detector| detector == *version)
                    || space.is_ok_and(|space| space.version == *version)
            });
            if depends {
                return Ok(Some(name_of(&record)));
            }
        }
        Ok(None)
    }

    /// Deletes the blobs that no manifest names. Nothing is deleted if a manifest is damaged or lost, because it may name
    /// any blob.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn sweep_orphans(&self) -> Result<SweepReport, RegistryError> {
        let _no_register = self.sweeping.write();
        let mut live = HashSet::new();
        let mut is_damaged = self.store.state().borrow().is_damaged(Table::Versions);
        for row in self.store.records::<VersionRecord>(Table::Versions, Range::default()) {
            let record = match row {
                Ok((_, record)) => record,
                Err(StoreError::Corrupt { .. }) => {
                    is_damaged = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            live.extend(record.tensors.iter().filter_map(|tensor| Digest::try_from(tensor.blob.as_slice()).ok()));
        }
        if is_damaged {
            tracing::warn!("a manifest is damaged or lost, so blobs that no version names are kept");
            return Ok(SweepReport::default());
        }
        Ok(self.blobs.sweep(&live)?)
    }
}
