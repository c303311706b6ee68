//! Makes versions for the fake engine.

use crate::{
    names::ModelId,
    proto::v1,
    registry::{NewVersion, Normalised, Origin, Reads},
};

/// Makes a version with one head and no tensors.
pub(crate) fn answering(model: &str) -> NewVersion {
    let kind = v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() });
    let model = ModelId::parse("model", model).unwrap();
    let normalisation = Normalised { mean: [0.5; 3], std: [0.2; 3] };
    let reads = Reads::Photos { side_px: 32, min_side_px: 16, normalisation };
    NewVersion {
        heads: vec![v1::Head { name: "age".to_owned(), kind: Some(kind), ..v1::Head::default() }],
        ..NewVersion::new(model, v1::Architecture::Resnet18, reads, Vec::new(), Origin::default())
    }
}
