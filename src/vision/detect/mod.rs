//! Finds faces: the parts of the cascade that handle pixels and boxes. The networks are in `nn`; `serving` combines the
//! two.
//!
//! MTCNN (Zhang, Zhang, Li and Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
//! Networks", 2016) scans a photo at many sizes with a small network, and checks its proposals with two larger ones.
//! The sizes are laid out side by side on one of a few fixed canvases ([`Pyramid`]), so that the first network runs
//! once a photo and in few shapes. [`Proposals`] pass from stage to stage, and [`DetectedFace`]s come out. Faces that
//! the view of a large photo shows too coarsely are detected again ([`DetectionView`]).

mod boxes;
mod cascade;
mod pyramid;
mod recheck;
mod settings;

pub use boxes::{BoundingBox, DetectedFace};
pub use cascade::{CROP_SIDES_PX, Proposals, StageOutput, UPRIGHT_SCORE, rotated_crops};
pub use pyramid::{CascadeSettings, ProposalMap, Pyramid};
pub use recheck::{DetectionView, FaceCrop, FacePart};
pub use settings::{AlignmentBox, DetectorSettings, points};
