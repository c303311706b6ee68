//! Finding faces: all of the cascade that is pixels and boxes. The networks are in `nn`, the two meet in `serving`.
//!
//! MTCNN (Zhang, Zhang, Li and Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
//! Networks", 2016) looks at a photo in many sizes with a small network, and at what that proposes with two larger
//! ones. The sizes are laid out side by side on one of a few fixed canvases ([`Pyramid`]), so that the first network
//! runs once a photo and in few shapes; [`Proposals`] go from stage to stage, and [`DetectedFace`]s come out. What the
//! view of a large photo does not show of them is looked at again ([`DetectionView`]).

mod boxes;
mod cascade;
mod pyramid;
mod recheck;
mod settings;

pub use boxes::{BoundingBox, DetectedFace};
pub use cascade::{CROP_SIDES_PX, Proposals, SURE, StageOutput, rotated_crops};
pub use pyramid::{CascadeSettings, ProposalMap, Pyramid};
pub use recheck::{DetectionView, FaceCrop, FacePart};
pub use settings::{AlignmentBox, DetectorSettings, points};
