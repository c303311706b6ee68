//! Reads the faces of a photo: detects them, detects them again at a higher resolution, checks their quality, cuts
//! chips out, and runs the networks on the chips.
//!
//! The pixel pool does the work on pixels; each network runs through its version's queue on the device. The stages run
//! one after another, and none calls an earlier one.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use tokio::{sync::OwnedSemaphorePermit, time::timeout_at};

use super::{FaceRead, FacesRead, Facts, Outcome, Photos, Plan, StageTimes, plan::FaceStages};
use crate::{
    app::{
        AppError,
        thresholds::{self, SPREAD},
    },
    names::EmbeddingSpace,
    proto::v1::{AbstentionReason, FaceSelection},
    serving::{Input, Served},
    vision::{DetectedFace, DetectionView, FaceCrop, FaceQuality, PhotoNote},
};

/// A face whose quality was checked, with its chips.
struct Cut {
    quality: FaceQuality,
    /// One chip per reader, in order; empty if the face misses a threshold.
    chips: Vec<Arc<Input>>,
    reasons: Vec<AbstentionReason>,
}

impl Photos {
    /// Reads the faces of a photo.
    pub(super) async fn read_faces(
        &self,
        plan: &Plan,
        stages: &FaceStages,
        photo: Bytes,
        mut facts: Facts,
    ) -> Result<(Outcome, Vec<PhotoNote>, Facts), AppError> {
        let start = Instant::now();
        let (pipeline, bytes) = (Arc::clone(&stages.pipeline), photo.clone());
        let work = move |limits: &_| {
            let (pyramid, view) = pipeline.prepare(&bytes, limits)?;
            Ok((Arc::new(Input::Photo(pyramid)), view))
        };
        let (input, view) = self.pixels.run(plan.deadline, work).await?;
        facts.took.decode = Some(start.elapsed());

        let start = Instant::now();
        let found = self.serving.run(&stages.detector, input, plan.deadline, plan.priority).await?;
        let mut faces = found.output.faces;
        let n_found = faces.len();
        match stages.selection {
            FaceSelection::Unspecified | FaceSelection::Largest => faces.truncate(1),
            FaceSelection::All => faces.truncate(stages.max_faces),
            FaceSelection::Single if n_found > 1 => faces.clear(),
            FaceSelection::Single => {}
        }
        let notes = view.notes().to_vec();
        if faces.is_empty() {
            facts.took.detection = Some(start.elapsed());
            return Ok((Outcome::Faces(FacesRead { n_found, faces: Vec::new() }), notes, facts));
        }
        let _places = self.places(plan, faces.len()).await?;
        let crops = self.detect_again(plan, stages, photo, view, faces).await?;
        facts.took.detection = Some(start.elapsed());

        let start = Instant::now();
        let (cuts, crops) = self.cut(plan, stages, crops).await?;
        facts.took.alignment = Some(start.elapsed());

        let read = cuts.into_iter().map(|cut| self.read_face(plan, stages, cut));
        let answered: Vec<Answered> = stream::iter(read).buffered(self.n_crowd_places as usize).try_collect().await?;
        let of_first = |reader: usize| answered.first().and_then(|answered| answered.served.get(reader));
        facts.took = StageTimes {
            queue: of_first(0).map(|served| served.queue),
            inference: of_first(0).map(|served| served.inference),
            batch_size: of_first(0).map_or(0, |served| served.batch_size),
            embedding: of_first(1).map(|served| served.queue + served.inference),
            ..facts.took
        };
        let faces = crops.into_iter().zip(answered);
        let faces = faces.map(|(crop, answered)| answered.into_face(crop, stages.space.as_ref())).collect();
        Ok((Outcome::Faces(FacesRead { n_found, faces }), notes, facts))
    }

    /// Reserves places for the faces of one photo; a single face needs none.
    async fn places(&self, plan: &Plan, n_faces: usize) -> Result<Option<OwnedSemaphorePermit>, AppError> {
        if n_faces <= 1 {
            return Ok(None);
        }
        let n_places = u32::try_from(n_faces).unwrap_or(u32::MAX).min(self.n_crowd_places);
        let place = Arc::clone(&self.crowds).acquire_many_owned(n_places);
        let late = |_| AppError::DeadlineExceeded { during: "the wait for other photos with several faces" };
        let place = match plan.deadline {
            Some(deadline) => timeout_at(deadline.into(), place).await.map_err(late)?,
            None => place.await,
        };
        place.map(Some).map_err(|_| AppError::Stopping)
    }

    /// Chooses the image that each face is cut out of: the view, or a part of the photo in which the detector runs
    /// again.
    async fn detect_again(
        &self,
        plan: &Plan,
        stages: &FaceStages,
        photo: Bytes,
        view: DetectionView,
        faces: Vec<DetectedFace>,
    ) -> Result<Vec<FaceCrop>, AppError> {
        if stages.pipeline.is_enough(&view, &faces) {
            return Ok(stages.pipeline.crops(&view, faces, &[], &[]));
        }
        let pipeline = Arc::clone(&stages.pipeline);
        let work = move |limits: &_| {
            let parts = pipeline.parts(&view, &photo, limits, &faces);
            Ok((parts, view, faces))
        };
        let (parts, view, faces) = self.pixels.run(plan.deadline, work).await?;
        let (parts, pyramids): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let looks = pyramids.into_iter().map(|pyramid| {
            self.serving.run(&stages.detector, Arc::new(Input::Photo(pyramid)), plan.deadline, plan.priority)
        });
        let found: Vec<Served> = stream::iter(looks).buffered(self.n_crowd_places as usize).try_collect().await?;
        let found: Vec<_> = found.into_iter().map(|served| served.output.faces).collect();
        Ok(stages.pipeline.crops(&view, faces, &parts, &found))
    }

    /// Checks the faces' quality, and cuts a chip per reader out of those within all thresholds.
    async fn cut(
        &self,
        plan: &Plan,
        stages: &FaceStages,
        crops: Vec<FaceCrop>,
    ) -> Result<(Vec<Cut>, Vec<FaceCrop>), AppError> {
        let (pipeline, thresholds) = (Arc::clone(&stages.pipeline), stages.thresholds);
        let work = move |_: &_| {
            let cut = |crop: &FaceCrop| {
                let mut reasons = Vec::new();
                let cut = pipeline.cut(crop, |quality| {
                    reasons = thresholds::judge(&quality.by_name(), &thresholds);
                    reasons.is_empty()
                });
                let chips = cut.chips.into_iter().map(|pixels| Arc::new(Input::Square(pixels))).collect();
                Cut { quality: cut.quality, chips, reasons }
            };
            Ok((crops.iter().map(cut).collect(), crops))
        };
        Ok(self.pixels.run(plan.deadline, work).await?)
    }

    /// Runs all readers on a face in parallel.
    async fn read_face(&self, plan: &Plan, stages: &FaceStages, cut: Cut) -> Result<Answered, AppError> {
        let reads = stages
            .readers(&plan.version().name)
            .zip(cut.chips)
            .map(|(reader, chip)| self.serving.run(reader, chip, plan.deadline, plan.priority));
        let served = try_join_all(reads).await?;
        let mut reasons = cut.reasons;
        let mut quality: BTreeMap<String, f64> =
            cut.quality.by_name().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        if let Some(spread) = widest_spread(&served) {
            reasons.extend(thresholds::judge(&[(SPREAD, spread)], &stages.thresholds));
            quality.insert(SPREAD.to_owned(), spread);
        }
        Ok(Answered { quality, reasons, served })
    }
}

/// Returns the largest standard deviation of the first reader's heads.
fn widest_spread(served: &[Served]) -> Option<f64> {
    let spreads = served.first().map(|served| served.output.spreads.as_slice()).unwrap_or_default();
    spreads.iter().flatten().copied().reduce(f32::max).map(f64::from)
}

/// A face after all readers.
struct Answered {
    quality: BTreeMap<String, f64>,
    reasons: Vec<AbstentionReason>,
    served: Vec<Served>,
}

impl Answered {
    fn into_face(self, crop: FaceCrop, space: Option<&EmbeddingSpace>) -> FaceRead {
        let mut outputs = self.served.into_iter().map(|served| served.output);
        let (output, paired) = (outputs.next(), outputs.next());
        let fit = self.reasons.is_empty();
        let embedding = paired
            .zip(space)
            .filter(|_| fit)
            .and_then(|(mut output, space)| Some((space.clone(), output.embeddings.remove(&*space.layer)?)));
        FaceRead {
            face: crop.sent,
            upside_down: crop.upside_down,
            quality: self.quality,
            output: output.filter(|_| fit),
            embedding,
            reasons: self.reasons,
        }
    }
}
