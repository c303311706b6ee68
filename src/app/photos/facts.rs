//! The decisions about a photo, apart from the answer.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    digest::Digest,
    names::VersionName,
    proto::v1::{self, QualityThresholds},
};

/// The decisions about a photo: the information that a log, a comparison of versions or another protocol needs besides
/// the answer.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The version that answered.
    pub(crate) version: VersionName,
    /// The detector, for a version that reads faces.
    pub(crate) detector: Option<VersionName>,
    /// The version that computed the embedding, if one was requested.
    pub(crate) embedder: Option<VersionName>,
    /// The thresholds of the faces, for a version that reads faces.
    pub(crate) thresholds: Option<QualityThresholds>,
    /// How long each stage took.
    pub(crate) took: StageTimes,
    pub(super) photo: Bytes,
}

/// How long each stage took; `None` for a stage that did not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StageTimes {
    /// Decoding, including the wait for it.
    pub(crate) decode: Option<Duration>,
    /// Detecting faces, including the second run.
    pub(crate) detection: Option<Duration>,
    /// Checking the faces' quality and cutting chips out.
    pub(crate) alignment: Option<Duration>,
    /// The first face's wait for the device.
    pub(crate) queue: Option<Duration>,
    /// The first face's forward pass.
    pub(crate) inference: Option<Duration>,
    /// The first face's embedding, including the wait for it.
    pub(crate) embedding: Option<Duration>,
    /// From the call's arrival to the answer.
    pub(crate) total: Duration,
    /// The number of images in the first face's batch; 0 if no network ran.
    pub(crate) batch_size: usize,
}

impl Facts {
    /// Computes the SHA-256 of the photo's file. Not stored, because it takes milliseconds for a large photo and not
    /// every call needs it.
    pub(crate) fn photo_digest(&self) -> Digest {
        Digest::of(&self.photo)
    }

    /// Logs the decisions at level debug.
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

impl StageTimes {
    /// Converts to the contract's form.
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

/// Converts a duration to its wire form; `None` if out of range.
pub(crate) fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
