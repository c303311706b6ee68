//! A photo with faces through the pipeline: decode, find, look again, cut out and judge, read and embed.
//!
//! Work on pixels is done by the pixel pool, and what a network does by its version's queue on the device; the stages
//! follow one another and none calls back.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{FaceRead, FacesRead, Photos, Wants, proto_duration};
use crate::{
    app::{
        AppError, Call,
        thresholds::{self, SPREAD},
    },
    names::{EmbeddingSpace, ModelRef, VersionName},
    proto::{
        store::{FaceChip, VersionRecord},
        v1::{self, AbstentionReason, FaceSelection, QualityThresholds},
    },
    serving::{Input, Served, cascade_settings, points},
    vision::{
        CascadeSettings, ChipSettings, DetectedFace, DetectionView, FaceCrop, FaceQuality, PhotoNote, Point, cut_chip,
    },
};

/// A network that is asked about each face, and what its chips look like.
struct Reader {
    version: String,
    chip: ChipSettings,
}

/// What faces are looked at again with.
struct Recheck {
    detector: String,
    settings: CascadeSettings,
    /// What the readers' chips look like.
    chips: Vec<ChipSettings>,
}

/// A face, cut out and judged.
struct Cut {
    quality: FaceQuality,
    /// For each reader, in order; none of a face that is not fit.
    chips: Vec<Arc<Input>>,
    reasons: Vec<AbstentionReason>,
}

impl Photos {
    /// Reads the faces of a photo, in a version that reads faces.
    pub(super) async fn read_faces(
        &self,
        call: &Call,
        version: &VersionName,
        manifest: &VersionRecord,
        chip: &FaceChip,
        image: Bytes,
        wants: &Wants,
    ) -> Result<(FacesRead, Vec<PhotoNote>, v1::Timing), AppError> {
        let thresholds = thresholds::effective(manifest.thresholds.as_ref(), &wants.thresholds, &self.faces)?;
        let mut readers = vec![Reader { version: version.to_string(), chip: chip_settings(version, manifest)? }];
        let space = if wants.embedding { Some(self.paired(version, chip, &mut readers).await?) } else { None };
        let detector = stored_version(&chip.detector)?;
        let detector_manifest = self.models.ready(&detector).await?;
        let detection = detector_manifest.preprocessing.as_ref().and_then(|p| p.detection.clone());
        let detection = detection.ok_or_else(|| AppError::Internal(format!("{detector} finds no faces")))?;
        let landmarks = points(&detection.landmark_template).unwrap_or(readers[0].chip.template);
        if detection.alignment_box.is_empty() {
            // Without a predictor of the readers' points, faces are cut out by the landmarks themselves.
            readers.iter_mut().for_each(|reader| reader.chip.template = landmarks);
        }

        let start = Instant::now();
        let settings = cascade_settings(&detection);
        let bytes = image.clone();
        let work = move |limits: &_| {
            let (pyramid, view) = DetectionView::new(&bytes, limits, &settings)?;
            Ok((Arc::new(Input::Photo(pyramid)), view))
        };
        let (input, view) = self.pixels.run(call.deadline, work).await?;
        let decode = proto_duration(start.elapsed());

        let start = Instant::now();
        let found = self.serving.run(&detector.to_string(), input, call.deadline).await?;
        let mut faces = found.output.faces;
        let n_found = faces.len();
        match wants.selection {
            FaceSelection::Unspecified | FaceSelection::Largest => faces.truncate(1),
            FaceSelection::All => faces.truncate(self.faces.max_faces),
            FaceSelection::Single if n_found > 1 => faces.clear(),
            FaceSelection::Single => {}
        }
        let timing = v1::Timing { decode, ..v1::Timing::default() };
        let notes = view.notes().to_vec();
        if faces.is_empty() {
            let timing = v1::Timing { detection: proto_duration(start.elapsed()), ..timing };
            return Ok((FacesRead { n_found, faces: Vec::new() }, notes, timing));
        }
        let _places = self.places(call, faces.len()).await?;
        let chips: Vec<ChipSettings> = readers.iter().map(|reader| reader.chip).collect();
        let again = Recheck { detector: detector.to_string(), settings, chips: chips.clone() };
        let crops = self.recheck(call, image, view, faces, again).await?;
        let timing = v1::Timing { detection: proto_duration(start.elapsed()), ..timing };

        let start = Instant::now();
        let (cuts, crops) = self.cut(call, crops, chips, landmarks, thresholds).await?;
        let alignment = proto_duration(start.elapsed());

        let asked = cuts.into_iter().map(|cut| self.ask(call, &readers, cut, &thresholds));
        let answered: Vec<Answered> = stream::iter(asked).buffered(self.n_crowd_places as usize).try_collect().await?;
        let first = answered.first().and_then(|answered| answered.served.first());
        let timing = v1::Timing {
            alignment,
            queue: first.and_then(|served| proto_duration(served.queue)),
            inference: first.and_then(|served| proto_duration(served.inference)),
            batch_size: first.map_or(0, |served| i32::try_from(served.batch_size).unwrap_or(i32::MAX)),
            embedding: answered
                .first()
                .and_then(|answered| answered.served.get(1))
                .and_then(|served| proto_duration(served.queue + served.inference)),
            ..timing
        };
        let read = crops.into_iter().zip(answered).map(|(crop, answered)| answered.into_face(crop, space.as_ref()));
        Ok((FacesRead { n_found, faces: read.collect() }, notes, timing))
    }

    /// Room for the faces of one photo; a single one needs none.
    async fn places(&self, call: &Call, n_faces: usize) -> Result<Option<OwnedSemaphorePermit>, AppError> {
        if n_faces <= 1 {
            return Ok(None);
        }
        let n_places = u32::try_from(n_faces).unwrap_or(u32::MAX).min(self.n_crowd_places);
        let place = Arc::clone(&self.crowds).acquire_many_owned(n_places);
        let late = |_| AppError::DeadlineExceeded { during: "the wait for other photos of many faces" };
        let place = match call.time_left() {
            Some(left) => timeout(left, place).await.map_err(late)?,
            None => place.await,
        };
        place.map(Some).map_err(|_| AppError::Stopping)
    }

    /// The space that the version is paired with; its network becomes the second reader.
    async fn paired(
        &self,
        version: &VersionName,
        chip: &FaceChip,
        readers: &mut Vec<Reader>,
    ) -> Result<EmbeddingSpace, AppError> {
        if chip.embedding_space.is_empty() {
            let what = "is paired with no embedding".to_owned();
            return Err(AppError::UnsupportedByModel { version: version.to_string(), what });
        }
        let space = EmbeddingSpace::parse("embedding_space", &chip.embedding_space)?;
        let embedder = space.version.clone();
        let manifest = self.models.ready(&embedder).await?;
        readers.push(Reader { version: embedder.to_string(), chip: chip_settings(&embedder, &manifest)? });
        Ok(space)
    }

    /// Each face with the picture that it is to be cut out of: the view, or a part of the photo that is looked at again.
    async fn recheck(
        &self,
        call: &Call,
        image: Bytes,
        view: DetectionView,
        faces: Vec<DetectedFace>,
        with: Recheck,
    ) -> Result<Vec<FaceCrop>, AppError> {
        let Recheck { detector, settings, chips } = with;
        if view.is_enough(&faces, &chips) {
            return Ok(view.crops(faces, &[], &[], &chips));
        }
        let work = move |limits: &_| {
            let parts = view.parts(&image, limits, &faces, &chips, &settings);
            Ok((parts, view, faces, chips))
        };
        let (parts, view, faces, chips) = self.pixels.run(call.deadline, work).await?;
        let (parts, pyramids): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let looks = pyramids
            .into_iter()
            .map(|pyramid| self.serving.run(&detector, Arc::new(Input::Photo(pyramid)), call.deadline));
        let found: Vec<Served> = stream::iter(looks).buffered(self.n_crowd_places as usize).try_collect().await?;
        let found: Vec<_> = found.into_iter().map(|served| served.output.faces).collect();
        Ok(view.crops(faces, &parts, &found, &chips))
    }

    /// Judges the faces, and cuts out those that are fit, once for each reader.
    async fn cut(
        &self,
        call: &Call,
        crops: Vec<FaceCrop>,
        chips: Vec<ChipSettings>,
        landmarks: [Point; 5],
        thresholds: QualityThresholds,
    ) -> Result<(Vec<Cut>, Vec<FaceCrop>), AppError> {
        let work = move |_: &_| {
            let cut = |crop: &FaceCrop| {
                let (picture, face) = (&*crop.picture, &crop.face);
                let quality = FaceQuality::of(picture, crop.scale, face, &landmarks, &chips[0].template);
                let reasons = thresholds::judge(&quality.by_name(), &thresholds);
                let chip = |settings: &ChipSettings| {
                    Arc::new(Input::Square(cut_chip(picture, &face.alignment, settings).pixels))
                };
                let chips = if reasons.is_empty() { chips.iter().map(chip).collect() } else { Vec::new() };
                Cut { quality, chips, reasons }
            };
            Ok((crops.iter().map(cut).collect(), crops))
        };
        Ok(self.pixels.run(call.deadline, work).await?)
    }

    /// Asks every reader about a face at once.
    async fn ask(
        &self,
        call: &Call,
        readers: &[Reader],
        cut: Cut,
        thresholds: &QualityThresholds,
    ) -> Result<Answered, AppError> {
        let asked =
            readers.iter().zip(cut.chips).map(|(reader, chip)| self.serving.run(&reader.version, chip, call.deadline));
        let served = try_join_all(asked).await?;
        let mut reasons = cut.reasons;
        let mut quality: BTreeMap<String, f64> =
            cut.quality.by_name().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let spreads = served.first().map(|served| served.output.spreads.as_slice()).unwrap_or_default();
        let spread = spreads.iter().flatten().copied().reduce(f32::max).map(f64::from);
        if let Some(spread) = spread {
            reasons.extend(thresholds::judge(&[(SPREAD, spread)], thresholds));
            quality.insert(SPREAD.to_owned(), spread);
        }
        Ok(Answered { quality, reasons, served })
    }
}

/// What the readers say of a face.
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
            .and_then(|(mut output, space)| Some((space.to_string(), output.embeddings.remove(&*space.layer)?)));
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

/// A version that a manifest names.
fn stored_version(name: &str) -> Result<VersionName, AppError> {
    match ModelRef::parse("detector", name)? {
        ModelRef::Version(version) => Ok(version),
        ModelRef::Alias { .. } => Err(AppError::Internal(format!("a manifest names {name}, which is no version"))),
    }
}

/// What a version's chips look like.
fn chip_settings(version: &VersionName, manifest: &VersionRecord) -> Result<ChipSettings, AppError> {
    let preprocessing = manifest.preprocessing.as_ref();
    let chip = preprocessing.and_then(|p| Some((p.image_size_px, p.face_chip.as_ref()?)));
    let settings = chip.and_then(|(side_px, chip)| {
        let template = points(&chip.template)?;
        (side_px >= 2 && chip.padding.is_finite()).then_some(ChipSettings { side_px, padding: chip.padding, template })
    });
    settings.ok_or_else(|| AppError::Internal(format!("the manifest of {version} does not say how faces are cut out")))
}
