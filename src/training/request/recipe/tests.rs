//! Tests of the recipe's defaults and ranges.

use proptest::prelude::*;

use super::*;

fn regression(name: &str) -> v1::Head {
    let kind = v1::head::Kind::Regression(v1::RegressionHead { unit: "years".to_owned() });
    v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() }
}

fn classification(name: &str, labels: &[&str]) -> v1::Head {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    let kind = v1::head::Kind::Classification(v1::ClassificationHead { labels });
    v1::Head { name: name.to_owned(), kind: Some(kind), ..v1::Head::default() }
}

fn least() -> v1::Recipe {
    v1::Recipe {
        heads: vec![regression("age")],
        stages: vec![v1::Stage { epochs: 1, image_size_px: 64, ..v1::Stage::default() }],
        ..v1::Recipe::default()
    }
}

/// Returns the field for which a recipe is refused.
fn refused(change: impl FnOnce(&mut v1::Recipe)) -> String {
    let mut recipe = least();
    change(&mut recipe);
    match Recipe::from_proto(&recipe) {
        Err(TrainingError::FieldInvalid { field, .. }) => field,
        other => panic!("expected a field to be refused, got {other:?}"),
    }
}

#[test]
fn what_is_absent_gets_the_promised_default() {
    let recipe = Recipe::from_proto(&least()).unwrap();
    let expected = Recipe {
        architecture: Architecture::ResNet34,
        heads: vec![Head {
            name: "age".to_owned(),
            target: Target::Regression { unit: "years".to_owned() },
            column: "age".to_owned(),
            loss_weight: 1.0,
        }],
        stages: vec![Stage { epochs: 1, image_size_px: 64, max_learning_rate: 1e-3, freeze_body: false }],
        batch_size: 32,
        weight_decay: 0.01,
        dropout: 0.5,
        pct_start: 0.3,
        seed: 0,
        warm_start: WarmStart::Random,
        valid_fraction: 0.1,
        calibration_fraction: 0.05,
        coverage: 0.9,
        max_bad_fraction: 0.05,
        flip_probability: 0.5,
        crop_fraction: 0.1,
    };
    assert_eq!(recipe, expected);
}

#[test]
fn an_explicit_zero_is_a_value_where_the_field_is_optional() {
    let mut proto = least();
    proto.weight_decay = Some(0.0);
    proto.dropout = Some(0.0);
    proto.flip_probability = Some(0.0);
    proto.calibration_fraction = Some(0.0);
    let recipe = Recipe::from_proto(&proto).unwrap();
    assert_eq!(
        (recipe.weight_decay, recipe.dropout, recipe.flip_probability, recipe.calibration_fraction),
        (0.0, 0.0, 0.0, 0.0)
    );
}

#[test]
fn what_is_out_of_range_is_refused_by_its_path() {
    assert_eq!(refused(|r| r.heads.clear()), "recipe.heads");
    assert_eq!(refused(|r| r.stages.clear()), "recipe.stages");
    assert_eq!(refused(|r| r.stages[0].epochs = 0), "recipe.stages[0].epochs");
    assert_eq!(refused(|r| r.stages[0].epochs = -3), "recipe.stages[0].epochs");
    assert_eq!(refused(|r| r.stages[0].image_size_px = 0), "recipe.stages[0].image_size_px");
    assert_eq!(refused(|r| r.stages[0].image_size_px = 100), "recipe.stages[0].image_size_px");
    assert_eq!(refused(|r| r.stages[0].image_size_px = 544), "recipe.stages[0].image_size_px");
    assert_eq!(refused(|r| r.stages[0].max_learning_rate = -1e-3), "recipe.stages[0].max_learning_rate");
    assert_eq!(refused(|r| r.stages[0].max_learning_rate = f64::NAN), "recipe.stages[0].max_learning_rate");
    assert_eq!(refused(|r| r.architecture = 9), "recipe.architecture");
    assert_eq!(refused(|r| r.batch_size = 1), "recipe.batch_size");
    assert_eq!(refused(|r| r.batch_size = -1), "recipe.batch_size");
    assert_eq!(refused(|r| r.weight_decay = Some(-0.1)), "recipe.weight_decay");
    assert_eq!(refused(|r| r.dropout = Some(1.0)), "recipe.dropout");
    assert_eq!(refused(|r| r.pct_start = Some(1.1)), "recipe.pct_start");
    assert_eq!(refused(|r| r.valid_fraction = Some(0.0)), "recipe.valid_fraction");
    assert_eq!(refused(|r| r.calibration_fraction = Some(0.6)), "recipe.calibration_fraction");
    assert_eq!(refused(|r| r.coverage = Some(1.0)), "recipe.coverage");
    assert_eq!(refused(|r| r.coverage = Some(0.0)), "recipe.coverage");
    assert_eq!(refused(|r| r.max_bad_fraction = Some(f64::NAN)), "recipe.max_bad_fraction");
    assert_eq!(refused(|r| r.flip_probability = Some(2.0)), "recipe.flip_probability");
    assert_eq!(refused(|r| r.crop_fraction = Some(0.51)), "recipe.crop_fraction");
    let empty = v1::recipe::WarmStart::WeightsPath(String::new());
    assert_eq!(refused(|r| r.warm_start = Some(empty)), "recipe.weights_path");
}

#[test]
fn a_bad_head_is_refused_by_its_path() {
    assert_eq!(refused(|r| r.heads[0].kind = None), "recipe.heads[0]");
    assert_eq!(refused(|r| r.heads[0].loss_weight = Some(0.0)), "recipe.heads[0].loss_weight");
    assert_eq!(refused(|r| r.heads.push(regression("age"))), "recipe.heads[1].name");
    for name in ["", "Age", "1st", "a-b", "âge", &"a".repeat(65)] {
        assert_eq!(refused(|r| r.heads[0].name = name.to_owned()), "recipe.heads[0].name", "{name}");
    }
    let labels = "recipe.heads[0].classification.labels";
    assert_eq!(refused(|r| r.heads[0] = classification("g", &["one"])), labels);
    assert_eq!(refused(|r| r.heads[0] = classification("g", &["a", "a"])), format!("{labels}[1]"));
    assert_eq!(refused(|r| r.heads[0] = classification("g", &["a", " b"])), format!("{labels}[1]"));
    assert_eq!(refused(|r| r.heads[0] = classification("g", &["", "b"])), format!("{labels}[0]"));
}

#[test]
fn a_message_names_the_range_and_what_came() {
    let mut proto = least();
    proto.dropout = Some(1.5);
    let error = Recipe::from_proto(&proto).unwrap_err().to_string();
    assert_eq!(error, "recipe.dropout: must be at least 0 and below 1, got 1.5");
}

prop_compose! {
    fn any_recipe()(
        numbers in proptest::collection::vec(proptest::option::of(-0.5_f64..1.5), 9),
        architecture in 0_i32..5,
        batch_size in -2_i32..5000,
        seed in any::<u64>(),
        epochs in -1_i32..20,
        size in 0_i32..20,
        rate in -0.1_f64..1.0,
        labels in proptest::collection::vec("[a-c]{0,2}", 0..4),
        warm in 0..3,
    ) -> v1::Recipe {
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        v1::Recipe {
            architecture,
            heads: vec![regression("age"), classification("gender", &labels)],
            stages: vec![v1::Stage { epochs, image_size_px: size * 32, max_learning_rate: rate, freeze_body: warm == 1 }],
            batch_size,
            seed,
            weight_decay: numbers[0],
            dropout: numbers[1],
            pct_start: numbers[2],
            valid_fraction: numbers[3],
            calibration_fraction: numbers[4],
            coverage: numbers[5],
            max_bad_fraction: numbers[6],
            flip_probability: numbers[7],
            crop_fraction: numbers[8],
            warm_start: match warm {
                0 => None,
                1 => Some(v1::recipe::WarmStart::Version("models/age@champion".to_owned())),
                _ => Some(v1::recipe::WarmStart::WeightsPath("resnet34.pth".to_owned())),
            },
        }
    }
}

proptest! {
    #[test]
    fn a_resolved_recipe_resolves_to_itself(proto in any_recipe()) {
        if let Ok(recipe) = Recipe::from_proto(&proto) {
            let resolved = recipe.to_proto();
            prop_assert_eq!(Recipe::from_proto(&resolved).unwrap(), recipe.clone());
            prop_assert!(recipe.dropout < 1.0 && recipe.coverage > 0.0 && recipe.batch_size >= 2);
            prop_assert!(recipe.stages.iter().all(|stage| stage.image_size_px.is_multiple_of(32)));
        }
    }
}
