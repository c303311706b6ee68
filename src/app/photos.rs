//! A photo through the pipeline: decoded on the pool, then through the network.
//!
//! The future carries the deadline and the cancellation: dropped or expired work never reaches the device.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{AppError, CallContext, Models};
use crate::{
    proto::{store::VersionRecord, v1},
    registry::VersionName,
    serving::{DecodePool, ImageOutput, ServeError, ServingPool},
};

/// Reads photos with the registry's versions.
#[derive(Clone)]
pub struct Photos {
    models: Models,
    decoder: DecodePool,
    serving: ServingPool,
}

/// What became of a photo.
pub struct Read {
    /// The version that read it.
    pub version: VersionName,
    /// Its manifest.
    pub manifest: Arc<VersionRecord>,
    /// The network's answer, or why there is none.
    pub outcome: Outcome,
    /// Where the time went.
    pub timing: v1::Timing,
}

/// The network's answer, or why there is none.
pub enum Outcome {
    /// What the network says.
    Answered(ImageOutput),
    /// The photo is smaller than the version reads.
    TooSmall {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The least side that the version reads.
        min_side_px: u32,
    },
}

impl Photos {
    /// Reads photos with `models` on `serving`, decoding on `decoder`.
    #[must_use]
    pub fn new(models: Models, decoder: DecodePool, serving: ServingPool) -> Self {
        Self { models, decoder, serving }
    }

    /// Reads one photo with the version that `reference` means.
    ///
    /// # Errors
    /// When there is no such version, the bytes are no readable image, or there is no room or time for it.
    pub async fn read(&self, call: &CallContext, reference: &str, image: Bytes) -> Result<Read, AppError> {
        if image.is_empty() {
            return Err(AppError::field("image", "must be the bytes of a JPEG, PNG or WebP file; it is empty"));
        }
        // A version may be retired between the look-up and its queue; then the reference means another one, or the
        // caller named this very one and it is loaded again. Once more is enough: a swap retires one version.
        match self.read_once(call, reference, image.clone()).await {
            Err(AppError::Serve(ServeError::NotLoaded { .. })) => self.read_once(call, reference, image).await,
            result => result,
        }
    }

    async fn read_once(&self, call: &CallContext, reference: &str, image: Bytes) -> Result<Read, AppError> {
        let version = self.models.resolve(reference)?;
        let manifest = self.models.ready(&version).await?;
        let preprocessing = manifest
            .preprocessing
            .as_ref()
            .ok_or_else(|| AppError::Internal(format!("{version} has no preprocessing")))?;
        let decoding = Instant::now();
        let decoded = self.decoder.decode(image, preprocessing.image_size_px, call.deadline).await?;
        let decode = decoding.elapsed();
        let min_side_px = preprocessing.min_side_px;
        let (outcome, timing) = if decoded.width.min(decoded.height) < min_side_px {
            let outcome = Outcome::TooSmall { width: decoded.width, height: decoded.height, min_side_px };
            (outcome, timing(call, decode, Duration::ZERO, Duration::ZERO, 0))
        } else {
            let served = self.serving.run(&version.to_string(), decoded.pixels, call.deadline).await?;
            let timing = timing(call, decode, served.queue, served.inference, served.batch_size);
            (Outcome::Answered(served.output), timing)
        };
        Ok(Read { version, manifest, outcome, timing })
    }
}

fn timing(call: &CallContext, decode: Duration, queue: Duration, inference: Duration, batch_size: usize) -> v1::Timing {
    v1::Timing {
        decode: proto_duration(decode),
        queue: proto_duration(queue),
        inference: proto_duration(inference),
        total: proto_duration(call.arrived.elapsed()),
        batch_size: i32::try_from(batch_size).unwrap_or(i32::MAX),
    }
}

/// A duration in its wire form; absent beyond what that can say.
pub(crate) fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
