//! Collections of faces, and searches for similar ones.
//!
//! The store is the truth; memory is a cache of it: every face is stored before it can be found, and hidden before it
//! is deleted. A segment is a block of faces in memory; a segment file has copies of rows and knows nothing of segments. Vectors are compared by cosine, only within one embedding space. Only `graph.rs` names `hnsw_rs`; the
//! exact scan is the oracle of every test. Knows no networks and no transport.

mod collection;
mod embedding;
mod error;
mod graph;
mod identity;
mod index;
mod loading;
mod names;
mod removal;
mod segment;
mod segment_files;
mod vectors;

pub(crate) use embedding::{Embedding, Score};
pub(crate) use error::SimilarityError;
pub(crate) use identity::identity_evidence;
pub(crate) use index::{NewCollection, NewFace, Query, SimilarityIndex, Target};
pub(crate) use names::{CollectionId, FaceId, FaceName};

/// The limits of collections and searches.
#[derive(Clone, Debug)]
pub(crate) struct SimilaritySettings {
    /// The largest `k`.
    pub max_k: usize,
    /// Collections up to this size are always scanned exactly.
    pub exact_up_to: usize,
    /// The tail's size at which it is sealed and gets a graph.
    pub seal_at: usize,
    /// Candidates kept in a search of a graph; a higher number finds more and takes longer.
    pub ef_search: usize,
    /// The most labels of a face.
    pub max_labels: usize,
    /// Bytes of a label's key.
    pub max_label_key_bytes: usize,
    /// Bytes of a label's value, and of a subject.
    pub max_label_value_bytes: usize,
}

impl Default for SimilaritySettings {
    fn default() -> Self {
        Self {
            max_k: 1_000,
            exact_up_to: 5_000,
            seal_at: 2_048,
            ef_search: 128,
            max_labels: 32,
            max_label_key_bytes: 64,
            max_label_value_bytes: 256,
        }
    }
}

impl SimilaritySettings {
    fn check_labels(&self, new: &NewFace) -> Result<(), SimilarityError> {
        if new.subject.len() > self.max_label_value_bytes {
            let rule = format!("must be at most {} bytes", self.max_label_value_bytes);
            return Err(SimilarityError::invalid("subject", rule));
        }
        let fits = |(key, value): (&String, &String)| {
            (1..=self.max_label_key_bytes).contains(&key.len()) && value.len() <= self.max_label_value_bytes
        };
        if new.labels.len() > self.max_labels || !new.labels.iter().all(fits) {
            let rule = format!(
                "must be at most {}, keys of 1 to {} bytes and values of at most {} bytes",
                self.max_labels, self.max_label_key_bytes, self.max_label_value_bytes
            );
            return Err(SimilarityError::invalid("labels", rule));
        }
        Ok(())
    }
}

#[cfg(test)]
mod recall_tests;
#[cfg(test)]
mod reopening_tests;
#[cfg(test)]
mod tests;
