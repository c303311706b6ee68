//! Tests of the loss, the optimiser's groups and the displayed numbers.

use super::*;
use crate::nn::{Architecture, Device, HeadKind, NetworkSpec};

fn heads() -> [Head; 2] {
    let head = |name: &str, target| Head { name: name.to_owned(), target, column: name.to_owned(), loss_weight: 1.0 };
    [
        head("age", Target::Regression { unit: String::new() }),
        head("gender", Target::Classification { labels: vec!["a".to_owned(), "b".to_owned()] }),
    ]
}

fn output() -> HeadOutput {
    HeadOutput {
        heads: vec![
            Tensor::from_slice(&[30.0_f32, 40.0, 50.0]).view([3, 1]),
            Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 0.0, 0.0, 3.0]).view([3, 2]),
        ],
        embedding512: Tensor::zeros([3, 512], (Kind::Float, tch::Device::Cpu)),
        embedding16: Tensor::zeros([3, 16], (Kind::Float, tch::Device::Cpu)),
    }
}

fn value(labels: [[f32; 3]; 2], weights: [f64; 2]) -> Option<f64> {
    let mut heads = heads();
    for (head, weight) in heads.iter_mut().zip(weights) {
        head.loss_weight = weight;
    }
    loss(&heads, &output(), &labels.map(Vec::from)).unwrap().map(|loss| loss.double_value(&[]))
}

#[test]
fn the_loss_is_over_the_labels_that_are_there() {
    const NONE: [f32; 3] = [f32::NAN; 3];
    let near = |got: Option<f64>, expected: f64| assert!((got.unwrap() - expected).abs() < 1e-5, "{got:?} {expected}");
    // Smooth L1: 0.5 d² below 1, d - 0.5 beyond.
    near(value([[30.5, 43.0, f32::NAN], NONE], [1.0, 1.0]), (0.125 + 2.5) / 2.0);
    let entropies = [2.0_f64.ln(), (1.0 + (-2.0_f64).exp()).ln()];
    near(value([NONE, [1.0, 0.0, f32::NAN]], [1.0, 1.0]), (entropies[0] + entropies[1]) / 2.0);
    near(value([[30.0, 40.0, 48.0], [1.0, f32::NAN, f32::NAN]], [2.0, 3.0]), 2.0 * 0.5 + 3.0 * entropies[0]);
    assert_eq!(value([NONE, NONE], [1.0, 1.0]), None);
}

#[test]
fn decay_shrinks_weights_but_no_norms_and_no_biases() {
    let heads = vec![("age".to_owned(), HeadKind::Regression)];
    let spec = NetworkSpec { architecture: Architecture::ResNet18, heads, dropout: 0.0 };
    for frozen in [false, true] {
        let mut network = Network::new(&spec, Device::Cpu);
        network.freeze_body(frozen);
        let before = network.export().unwrap();
        let mut optimiser = optimiser(&network, 0.5).unwrap();
        optimiser.set_learning_rate(0.1).unwrap();
        // Gradients of zero: only the decay acts.
        let mut sum = Tensor::from(0.0_f32);
        for tensor in network.parameters().into_values().flatten() {
            sum += tensor.sum(Kind::Float) * 0.0;
        }
        sum.backward();
        optimiser.step().unwrap();
        for (old, new) in before.iter().zip(network.export().unwrap()) {
            let is_frozen = frozen && !old.name.starts_with("head");
            let shrinks = old.shape.len() > 1 && !is_frozen;
            assert_eq!(*old != new, shrinks, "{} of {:?}", old.name, old.shape);
        }
    }
}

#[test]
fn the_shown_loss_starts_at_the_first() {
    let mut loss = MovingLoss::default();
    assert!((loss.next(8.0) - 8.0).abs() < 1e-9);
    assert!(loss.next(4.0) < 8.0);
    for _ in 0..1000 {
        loss.next(2.0);
    }
    assert!((loss.shown() - 2.0).abs() < 1e-6);
}

#[test]
fn seeds_differ_at_every_place() {
    let mut seeds = std::collections::BTreeSet::new();
    for (a, b, c) in (0..8).flat_map(|a| (0..8).flat_map(move |b| (0..8).map(move |c| (a, b, c)))) {
        assert!(seeds.insert(mix(0, a, b, c)));
    }
}
