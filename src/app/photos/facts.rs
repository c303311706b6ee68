//! What was decided for a photo, apart from the answer.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    digest::Digest,
    names::VersionName,
    proto::v1::{self, QualityThresholds},
};

/// What was decided for a photo: all that a record of the decision, a comparison of versions, or another protocol needs
/// besides the answer.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The version that answered.
    pub(crate) version: VersionName,
    /// The version that found the faces, for one that reads faces.
    pub(crate) detector: Option<VersionName>,
    /// The version that made the embedding, where one was wanted.
    pub(crate) embedder: Option<VersionName>,
    /// What faces had to reach to be answered, for a version that reads faces.
    pub(crate) thresholds: Option<QualityThresholds>,
    /// How long each stage took.
    pub(crate) took: Took,
    pub(super) photo: Bytes,
}

/// How long each stage took; absent for stages that the photo did not go through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Took {
    /// Decoding, and the wait for it.
    pub(crate) decode: Option<Duration>,
    /// Finding faces, and looking again at some.
    pub(crate) detection: Option<Duration>,
    /// Judging faces and cutting them out.
    pub(crate) alignment: Option<Duration>,
    /// The wait for the device, of the first face.
    pub(crate) queue: Option<Duration>,
    /// The forward pass, of the first face.
    pub(crate) inference: Option<Duration>,
    /// The embedding of the first face, the wait for it included.
    pub(crate) embedding: Option<Duration>,
    /// From the arrival of the call to the answer.
    pub(crate) total: Duration,
    /// Images in the first face's batch; 0 where no network read anything.
    pub(crate) batch_size: usize,
}

impl Facts {
    /// The SHA-256 of the photo's file. It is computed here, for it costs a large photo milliseconds and not every call
    /// wants it.
    pub(crate) fn photo_digest(&self) -> Digest {
        Digest::of(&self.photo)
    }

    /// Writes what was decided to the log, at the level debug.
    pub(crate) fn log(&self) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let name = |version: &Option<VersionName>| version.as_ref().map(ToString::to_string);
            tracing::debug!(
                version = %self.version,
                detector = name(&self.detector),
                embedder = name(&self.embedder),
                thresholds = ?self.thresholds,
                photo = %self.photo_digest(),
                batch_size = self.took.batch_size,
                took = ?self.took.total,
                "decided"
            );
        }
    }
}

impl Took {
    /// The contract's form.
    pub(crate) fn to_proto(self) -> v1::Timing {
        v1::Timing {
            decode: self.decode.and_then(proto_duration),
            detection: self.detection.and_then(proto_duration),
            alignment: self.alignment.and_then(proto_duration),
            queue: self.queue.and_then(proto_duration),
            inference: self.inference.and_then(proto_duration),
            embedding: self.embedding.and_then(proto_duration),
            total: proto_duration(self.total),
            batch_size: i32::try_from(self.batch_size).unwrap_or(i32::MAX),
        }
    }
}

/// A duration in its wire form; absent beyond what that can express.
pub(crate) fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
