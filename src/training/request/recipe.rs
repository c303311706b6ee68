//! How a version is trained: the contract's recipe with every default filled in and every range checked.
//!
//! Every [`Recipe`] is valid by construction; later code does not check again. The defaults and ranges are those of
//! `proto/visage/v1/recipe.proto`.

use std::{
    collections::BTreeSet,
    ops::{Bound, RangeBounds},
};

use crate::{
    nn::{Architecture, HeadKind, NetworkSpec},
    proto::v1,
    training::{TrainingError, count},
};

/// The largest number of heads.
const MAX_HEADS: usize = 64;
/// The largest number of labels of a classification.
pub(crate) const MAX_LABELS: usize = 1_000;
/// The largest number of stages.
const MAX_STAGES: usize = 32;
/// The maximum length of a name, unit, column or label in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 256;

/// How a version is trained.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recipe {
    /// The network's body.
    pub architecture: Architecture,
    /// The heads, in the order of the outputs; one or more, with different names.
    pub heads: Vec<Head>,
    /// The stages, in the order in which they run; one or more.
    pub stages: Vec<Stage>,
    /// Images per step, 2 to 4096: batch norm needs two.
    pub batch_size: usize,
    /// Decoupled weight decay of the weights, 0 to below 10.
    pub weight_decay: f64,
    /// Dropout of the head's two blocks, 0 to below 1.
    pub dropout: f64,
    /// Share of the one-cycle in which the rate rises, 0 to 1.
    pub pct_start: f64,
    /// The seed of all randomness.
    pub seed: u64,
    /// The initial weights.
    pub warm_start: WarmStart,
    /// Share of the training part held out for validation when the data has no valid part, above 0 to 0.5.
    pub valid_fraction: f64,
    /// Share of the training part held out for the intervals when the data has no calibration part, 0 (no intervals) to
    /// 0.5.
    pub calibration_fraction: f64,
    /// Coverage of the intervals, between 0 and 1.
    pub coverage: f64,
    /// The largest share of unusable rows, 0 to 1; the run stops above it.
    pub max_bad_fraction: f64,
    /// Probability of mirroring a training image, 0 to 1.
    pub flip_probability: f64,
    /// The largest share of each side that a random crop cuts off, 0 to 0.5.
    pub crop_fraction: f64,
}

/// One value to predict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// Lower-case letters, digits and underscores, starting with a letter.
    pub name: String,
    /// The meaning of its output.
    pub target: Target,
    /// The label column it learns from.
    pub column: String,
    /// Its weight in the loss, above 0.
    pub loss_weight: f64,
}

/// The meaning of a head's output.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    /// A number, learnt with Smooth L1.
    Regression {
        /// For example "years"; may be empty.
        unit: String,
    },
    /// A choice, learnt with cross entropy.
    Classification {
        /// In the order of the outputs; empty until they are read from the data, then two or more.
        labels: Vec<String>,
    },
}

/// A one-cycle run over the data at one size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stage {
    /// Passes over the training part, 1 to 10,000.
    pub epochs: usize,
    /// Side of the square network input in pixels, 32 to 512, a multiple of 32.
    pub image_size_px: u32,
    /// The one-cycle's peak, above 0 to 10.
    pub max_learning_rate: f64,
    /// Train only the head.
    pub freeze_body: bool,
}

/// The source of the initial weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WarmStart {
    /// Random, from the seed.
    Random,
    /// `models/{model}/versions/{n}` or `models/{model}@{alias}`, not resolved yet.
    Version(String),
    /// A caller's path of a file with torchvision's names, not checked against the training roots yet.
    WeightsPath(String),
}

impl Recipe {
    /// Fills in the defaults and checks every range.
    ///
    /// # Errors
    /// [`TrainingError::FieldInvalid`] with the path of the first field that is missing or out of range.
    pub(crate) fn from_proto(recipe: &v1::Recipe) -> Result<Self, TrainingError> {
        let heads = Head::parse_all("recipe.heads", &recipe.heads)?;
        n_items("recipe.stages", recipe.stages.len(), 1..=MAX_STAGES)?;
        let stages = recipe
            .stages
            .iter()
            .enumerate()
            .map(|(stage_idx, stage)| Stage::from_proto(&format!("recipe.stages[{stage_idx}]"), stage))
            .collect::<Result<_, _>>()?;
        let valid_fraction =
            number("recipe.valid_fraction", recipe.valid_fraction, 0.1, (Bound::Excluded(0.0), Bound::Included(0.5)))?;
        Ok(Self {
            architecture: architecture("recipe.architecture", recipe.architecture)?,
            heads,
            stages,
            batch_size: whole("recipe.batch_size", recipe.batch_size, Some(32), 2..=4096)?,
            weight_decay: number("recipe.weight_decay", recipe.weight_decay, 0.01, 0.0..10.0)?,
            dropout: number("recipe.dropout", recipe.dropout, 0.5, 0.0..1.0)?,
            pct_start: number("recipe.pct_start", recipe.pct_start, 0.3, 0.0..=1.0)?,
            seed: recipe.seed,
            warm_start: WarmStart::from_proto(recipe.warm_start.as_ref())?,
            valid_fraction,
            calibration_fraction: number("recipe.calibration_fraction", recipe.calibration_fraction, 0.05, 0.0..=0.5)?,
            coverage: number("recipe.coverage", recipe.coverage, 0.9, (Bound::Excluded(0.0), Bound::Excluded(1.0)))?,
            max_bad_fraction: number("recipe.max_bad_fraction", recipe.max_bad_fraction, 0.05, 0.0..=1.0)?,
            flip_probability: number("recipe.flip_probability", recipe.flip_probability, 0.5, 0.0..=1.0)?,
            crop_fraction: number("recipe.crop_fraction", recipe.crop_fraction, 0.1, 0.0..=0.5)?,
        })
    }

    /// The contract's form with every default filled in; [`Recipe::from_proto`] returns this recipe from it.
    #[must_use]
    pub(crate) fn to_proto(&self) -> v1::Recipe {
        v1::Recipe {
            architecture: architecture_to_proto(self.architecture).into(),
            heads: self.heads.iter().map(Head::to_proto).collect(),
            stages: self.stages.iter().map(Stage::to_proto).collect(),
            batch_size: count(self.batch_size),
            weight_decay: Some(self.weight_decay),
            dropout: Some(self.dropout),
            pct_start: Some(self.pct_start),
            seed: self.seed,
            warm_start: match &self.warm_start {
                WarmStart::Random => None,
                WarmStart::Version(name) => Some(v1::recipe::WarmStart::Version(name.clone())),
                WarmStart::WeightsPath(path) => Some(v1::recipe::WarmStart::WeightsPath(path.clone())),
            },
            valid_fraction: Some(self.valid_fraction),
            calibration_fraction: Some(self.calibration_fraction),
            coverage: Some(self.coverage),
            max_bad_fraction: Some(self.max_bad_fraction),
            flip_probability: Some(self.flip_probability),
            crop_fraction: Some(self.crop_fraction),
        }
    }
}

impl Head {
    /// Parses heads, in a recipe or on their own.
    ///
    /// # Errors
    /// [`TrainingError::FieldInvalid`] with a path below `field`.
    pub(crate) fn parse_all(field: &str, heads: &[v1::Head]) -> Result<Vec<Self>, TrainingError> {
        n_items(field, heads.len(), 1..=MAX_HEADS)?;
        let mut names = BTreeSet::new();
        let mut checked = Vec::with_capacity(heads.len());
        for (head_idx, head) in heads.iter().enumerate() {
            let head = Self::from_proto(&format!("{field}[{head_idx}]"), head)?;
            if !names.insert(head.name.clone()) {
                let detail = format!("{:?} is already the name of another head", head.name);
                return Err(TrainingError::field(format!("{field}[{head_idx}].name"), detail));
            }
            checked.push(head);
        }
        Ok(checked)
    }

    fn from_proto(field: &str, head: &v1::Head) -> Result<Self, TrainingError> {
        let starts_well = head.name.starts_with(|first: char| first.is_ascii_lowercase());
        let is_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        if !starts_well || !head.name.chars().all(is_name) || head.name.len() > 64 {
            let expected = "1 to 64 lower-case letters, digits and underscores, beginning with a letter";
            return Err(TrainingError::field(
                format!("{field}.name"),
                format!("must be {expected}, got {:?}", head.name),
            ));
        }
        let column = if head.column.is_empty() { &head.name } else { &head.column };
        let loss_weight = (Bound::Excluded(0.0), Bound::Included(1e6));
        Ok(Self {
            name: head.name.clone(),
            target: Target::from_proto(field, head.kind.as_ref())?,
            column: text(&format!("{field}.column"), column)?,
            loss_weight: number(&format!("{field}.loss_weight"), head.loss_weight, 1.0, loss_weight)?,
        })
    }

    /// Converts to the contract's form.
    #[must_use]
    pub(crate) fn to_proto(&self) -> v1::Head {
        let kind = match &self.target {
            Target::Regression { unit } => v1::head::Kind::Regression(v1::RegressionHead { unit: unit.clone() }),
            Target::Classification { labels } => {
                v1::head::Kind::Classification(v1::ClassificationHead { labels: labels.clone() })
            }
        };
        v1::Head {
            name: self.name.clone(),
            kind: Some(kind),
            column: self.column.clone(),
            loss_weight: Some(self.loss_weight),
        }
    }

    /// Returns true if its labels are still to be read from the data.
    #[must_use]
    pub(crate) fn has_open_labels(&self) -> bool {
        matches!(&self.target, Target::Classification { labels } if labels.is_empty())
    }

    /// Returns the network's kind of head; its labels must be resolved.
    #[must_use]
    pub(crate) fn kind(&self) -> HeadKind {
        match &self.target {
            Target::Regression { .. } => HeadKind::Regression,
            Target::Classification { labels } => HeadKind::Classification { n_labels: labels.len() },
        }
    }
}

impl Target {
    fn from_proto(field: &str, kind: Option<&v1::head::Kind>) -> Result<Self, TrainingError> {
        match kind {
            None => Err(TrainingError::field(field, "must set regression or classification")),
            Some(v1::head::Kind::Regression(head)) => {
                Ok(Self::Regression { unit: text(&format!("{field}.regression.unit"), &head.unit)? })
            }
            Some(v1::head::Kind::Classification(head)) => {
                let field = format!("{field}.classification.labels");
                if !head.labels.is_empty() {
                    n_items(&field, head.labels.len(), 2..=MAX_LABELS)?;
                }
                let mut seen = BTreeSet::new();
                for (label_idx, label) in head.labels.iter().enumerate() {
                    let field = format!("{field}[{label_idx}]");
                    text(&field, label)?;
                    if label.trim().is_empty() || label.trim() != label {
                        return Err(TrainingError::field(field, "must not be empty nor have spaces around it"));
                    }
                    if !seen.insert(label) {
                        return Err(TrainingError::field(field, format!("{label:?} is already in the list")));
                    }
                }
                Ok(Self::Classification { labels: head.labels.clone() })
            }
        }
    }
}

impl Stage {
    fn from_proto(field: &str, stage: &v1::Stage) -> Result<Self, TrainingError> {
        let size_field = format!("{field}.image_size_px");
        let image_size_px: u32 = whole(&size_field, stage.image_size_px, None, 32..=512)?;
        if !image_size_px.is_multiple_of(32) {
            return Err(TrainingError::field(size_field, format!("must be a multiple of 32, got {image_size_px}")));
        }
        let rate = Some(stage.max_learning_rate).filter(|rate| *rate != 0.0);
        Ok(Self {
            epochs: whole(&format!("{field}.epochs"), stage.epochs, None, 1..=10_000)?,
            image_size_px,
            max_learning_rate: number(
                &format!("{field}.max_learning_rate"),
                rate,
                1e-3,
                (Bound::Excluded(0.0), Bound::Included(10.0)),
            )?,
            freeze_body: stage.freeze_body,
        })
    }

    fn to_proto(&self) -> v1::Stage {
        v1::Stage {
            epochs: count(self.epochs),
            image_size_px: count(self.image_size_px),
            max_learning_rate: self.max_learning_rate,
            freeze_body: self.freeze_body,
        }
    }
}

impl WarmStart {
    fn from_proto(warm_start: Option<&v1::recipe::WarmStart>) -> Result<Self, TrainingError> {
        let (field, value) = match warm_start {
            None => return Ok(Self::Random),
            Some(v1::recipe::WarmStart::Version(name)) => ("recipe.version", name),
            Some(v1::recipe::WarmStart::WeightsPath(path)) => ("recipe.weights_path", path),
        };
        if value.is_empty() {
            return Err(TrainingError::field(field, "must not be empty when it is given"));
        }
        Ok(match warm_start {
            Some(v1::recipe::WarmStart::WeightsPath(path)) => Self::WeightsPath(path.clone()),
            _ => Self::Version(value.clone()),
        })
    }
}

/// Returns the network of these heads, whose labels must be resolved.
#[must_use]
pub(crate) fn network_spec(architecture: Architecture, heads: &[Head], dropout: f64) -> NetworkSpec {
    NetworkSpec { architecture, heads: heads.iter().map(|head| (head.name.clone(), head.kind())).collect(), dropout }
}

/// Parses the contract's number of a body; the default is ResNet34.
///
/// # Errors
/// [`TrainingError::FieldInvalid`] for an unknown number.
pub(crate) fn architecture(field: &str, architecture: impl Into<i32>) -> Result<Architecture, TrainingError> {
    let architecture = architecture.into();
    match v1::Architecture::try_from(architecture) {
        Ok(v1::Architecture::Resnet18) => Ok(Architecture::ResNet18),
        Ok(v1::Architecture::Unspecified | v1::Architecture::Resnet34) => Ok(Architecture::ResNet34),
        Ok(v1::Architecture::Resnet50) => Ok(Architecture::ResNet50),
        Ok(v1::Architecture::Mtcnn | v1::Architecture::DlibAgeGender | v1::Architecture::DlibFaceDescriptor) => {
            Err(TrainingError::field(field, "is a published network, which is imported and not trained"))
        }
        Err(_) => Err(TrainingError::field(field, format!("{architecture} is no architecture that this server has"))),
    }
}

/// Converts a body to the contract's form.
#[must_use]
pub(crate) fn architecture_to_proto(architecture: Architecture) -> v1::Architecture {
    match architecture {
        Architecture::ResNet18 => v1::Architecture::Resnet18,
        Architecture::ResNet34 => v1::Architecture::Resnet34,
        Architecture::ResNet50 => v1::Architecture::Resnet50,
    }
}

/// Parses a real number in its range; an absent one becomes the default.
fn number(field: &str, value: Option<f64>, default: f64, range: impl RangeBounds<f64>) -> Result<f64, TrainingError> {
    let value = value.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let from = match range.start_bound() {
        Bound::Included(least) => format!("at least {least}"),
        Bound::Excluded(least) => format!("above {least}"),
        Bound::Unbounded => "a number".to_owned(),
    };
    let to = match range.end_bound() {
        Bound::Included(most) => format!(" and at most {most}"),
        Bound::Excluded(most) => format!(" and below {most}"),
        Bound::Unbounded => String::new(),
    };
    Err(TrainingError::field(field, format!("must be {from}{to}, got {value}")))
}

/// Parses a whole number in its range; zero becomes the default, if there is one.
fn whole<T: TryFrom<i32> + PartialOrd + std::fmt::Display>(
    field: &str,
    value: i32,
    default: Option<T>,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, TrainingError> {
    if let (0, Some(default)) = (value, default) {
        return Ok(default);
    }
    match T::try_from(value) {
        Ok(whole) if range.contains(&whole) => Ok(whole),
        _ => Err(TrainingError::field(field, format!("must be {} to {}, got {value}", range.start(), range.end()))),
    }
}

fn n_items(field: &str, n: usize, range: std::ops::RangeInclusive<usize>) -> Result<(), TrainingError> {
    if range.contains(&n) {
        return Ok(());
    }
    Err(TrainingError::field(field, format!("must have {} to {} entries, got {n}", range.start(), range.end())))
}

fn text(field: &str, text: &str) -> Result<String, TrainingError> {
    if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
        let detail = format!("must be at most {MAX_TEXT_BYTES} bytes without control characters");
        return Err(TrainingError::field(field, detail));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
