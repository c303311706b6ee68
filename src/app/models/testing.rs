//! Makes versions for the fake engine.

use std::collections::BTreeMap;

use crate::{
    names::ModelId,
    proto::v1,
    registry::{NewVersion, Normalised, Origin, Reads},
};

/// Makes a version with one head and no tensors.
pub(crate) fn answering(model: &str) -> NewVersion {
    let kind = v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() });
    NewVersion {
        model: ModelId::parse("model", model).unwrap(),
        architecture: v1::Architecture::Resnet18,
        heads: vec![v1::Head { name: "age".to_owned(), kind: Some(kind), ..v1::Head::default() }],
        reads: Reads::Photos {
            side_px: 32,
            min_side_px: 16,
            normalisation: Normalised { mean: [0.5; 3], std: [0.2; 3] },
        },
        tensors: Vec::new(),
        calibrations: Vec::new(),
        embedding_layers: Vec::new(),
        metrics: BTreeMap::new(),
        golden: None,
        thresholds: None,
        identity: None,
        origin: Origin::default(),
    }
}
