//! The engine that finds faces, with three networks and box arithmetic between them.

use std::{collections::BTreeMap, sync::Arc};

use super::shape::shape_predictor;
use crate::{
    nn::{CropOutput, Device, Mtcnn, SHAPE_PREFIX, TensorData},
    serving::{Engine, EngineError, ImageOutput, Input},
    vision::{
        AlignmentBox, BoundingBox, CascadeSettings, DetectedFace, DetectorSettings, Pyramid, ShapePredictor,
        detect::{CROP_SIDES_PX, ProposalMap, Proposals, StageOutput, UPRIGHT_SCORE, rotated_crops},
    },
};

/// A detector with fixed weights.
pub(super) struct DetectorEngine {
    networks: Mtcnn,
    settings: CascadeSettings,
    /// Predicts the points by which faces are cropped, inside the box it expects; without it, the landmarks are used.
    alignment: Option<(ShapePredictor, AlignmentBox)>,
}

/// A run gains nothing from more photos: the first network handles one at a time, and the other two see all crops
/// together.
const MAX_BATCH: usize = 8;

impl Engine for DetectorEngine {
    fn run(&mut self, batch: &[Arc<Input>]) -> Result<Vec<ImageOutput>, EngineError> {
        let pyramids = batch.iter().map(|input| input.photo()).collect::<Result<Vec<_>, _>>()?;
        let mut proposals = self.propose(&pyramids)?;
        let outputs = self.run_network(&pyramids, &proposals, 0)?;
        for ((proposals, pyramid), outputs) in proposals.iter_mut().zip(&pyramids).zip(&outputs) {
            *proposals = proposals.refined(pyramid, outputs, &self.settings);
        }
        let outputs = self.run_network(&pyramids, &proposals, 1)?;
        let faces = proposals.iter().zip(&outputs).zip(&pyramids).map(|((proposals, outputs), pyramid)| {
            let mut faces = proposals.faces(pyramid, outputs, &self.settings);
            if let Some((predictor, expected)) = &self.alignment {
                for face in &mut faces {
                    let bounds = face.square_at(&expected.landmarks, expected.centre, expected.side);
                    face.alignment = predictor.place(pyramid.photo(), &bounds);
                }
            }
            faces
        });
        let mut faces: Vec<Vec<DetectedFace>> = faces.collect();
        self.score_rotated(&pyramids, &mut faces)?;
        let faces = faces.into_iter();
        Ok(faces.map(|faces| ImageOutput { faces, ..ImageOutput::new(Vec::new(), BTreeMap::new()) }).collect())
    }

    /// Returns means of the first network's map, the outputs of the other two for one crop each, and the predictor's
    /// points in the middle of the pattern. The pattern contains no faces, so faces alone would not reveal a broken
    /// network.
    fn fingerprint(&mut self, input: &Arc<Input>) -> Result<Vec<f32>, EngineError> {
        let pyramid = input.photo()?;
        let (width, height, pixels) = pyramid.canvas();
        let map = self.networks.propose(pixels, width, height)?;
        let mut numbers = vec![mean(&map.scores), mean(&map.offsets)];
        let crop = |side_px: u32| pixels.get(..(side_px * side_px * 3) as usize).unwrap_or_default();
        let refined = self.networks.refine(crop(CROP_SIDES_PX[0]))?;
        let decided = self.networks.decide(crop(CROP_SIDES_PX[1]))?;
        for output in refined.iter().chain(&decided) {
            numbers.push(output.score);
            numbers.extend(output.offsets.iter().chain(&output.landmarks));
        }
        if let Some((predictor, _)) = &self.alignment {
            let photo = pyramid.photo();
            let (width, height) = (photo.width_px() as f32, photo.height_px() as f32);
            let middle =
                BoundingBox { left: width / 4.0, top: height / 4.0, right: width * 0.75, bottom: height * 0.75 };
            numbers
                .extend(predictor.place(photo, &middle).iter().flat_map(|point| [point.x / width, point.y / height]));
        }
        Ok(numbers)
    }

    fn max_batch(&self) -> usize {
        MAX_BATCH
    }
}

impl DetectorEngine {
    /// Loads the three networks, and the predictor if the settings require one.
    pub(super) fn load(
        settings: &DetectorSettings,
        tensors: &[TensorData],
        device: Device,
    ) -> Result<Self, EngineError> {
        let (shape, networks): (Vec<_>, Vec<_>) =
            tensors.iter().cloned().partition(|tensor| tensor.name.starts_with(SHAPE_PREFIX));
        let alignment = shape_predictor(&shape)?.zip(settings.alignment_box);
        if alignment.is_none() && settings.alignment_box.is_some() {
            // Without the predictor, faces would be cropped by points of another kind.
            let detail = "the version gives its predictor of points a box, and has no predictor";
            return Err(EngineError::Failed(detail.to_owned()));
        }
        let networks = Mtcnn::load(&networks, device)?;
        Ok(Self { networks, settings: settings.cascade, alignment })
    }

    /// Runs the first network on each photo. One at a time: its maps are large, and a run of one has one shape.
    fn propose(&self, pyramids: &[&Pyramid]) -> Result<Vec<Proposals>, EngineError> {
        let proposals = pyramids.iter().map(|pyramid| {
            let (width, height, pixels) = pyramid.canvas();
            let map = self.networks.propose(pixels, width, height)?;
            let map = ProposalMap { width: map.width, scores: &map.scores, offsets: &map.offsets };
            Ok(Proposals::of_map(pyramid, &map, &self.settings))
        });
        proposals.collect()
    }

    /// Runs the second (0) or third (1) network on every box; the result is by photo.
    fn run_network(
        &self,
        pyramids: &[&Pyramid],
        proposals: &[Proposals],
        stage: usize,
    ) -> Result<Vec<Vec<StageOutput>>, EngineError> {
        let side_px = CROP_SIDES_PX[stage];
        let crops: Vec<f32> =
            proposals.iter().zip(pyramids).flat_map(|(proposals, pyramid)| proposals.crops(pyramid, side_px)).collect();
        let outputs = if stage == 0 { self.networks.refine(&crops) } else { self.networks.decide(&crops) };
        let mut outputs = outputs?.into_iter().map(stage_output);
        Ok(proposals.iter().map(|proposals| outputs.by_ref().take(proposals.len()).collect()).collect())
    }

    /// Runs the third network again, rotated, on the faces with a low score.
    fn score_rotated(&self, pyramids: &[&Pyramid], faces: &mut [Vec<DetectedFace>]) -> Result<(), EngineError> {
        let is_unsure = |face: &&DetectedFace| face.score < UPRIGHT_SCORE;
        let crops = pyramids.iter().zip(faces.iter());
        let crops: Vec<f32> =
            crops.flat_map(|(pyramid, faces)| rotated_crops(pyramid, faces.iter().filter(is_unsure))).collect();
        let outputs = self.networks.decide(&crops)?;
        for (face, output) in faces.iter_mut().flatten().filter(|face| face.score < UPRIGHT_SCORE).zip(outputs) {
            face.rotated_score = Some(output.score);
        }
        Ok(())
    }
}

fn stage_output(output: CropOutput) -> StageOutput {
    StageOutput { score: output.score, offsets: output.offsets, landmarks: output.landmarks }
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len().max(1) as f32
}
