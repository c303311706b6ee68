use std::path::PathBuf;

use super::*;
use crate::nn::{DlibPlainConfig, DlibPlainNet, Dtype, golden_input, read_weights};

/// Made by `tests/fixtures/dlib_networks.py` with dlib 20.0.1 and ONNX Runtime 1.32.0.
const GOLDEN: &str = include_str!("../../../../tests/fixtures/dlib_networks.json");

/// Weights are not committed. If their folder is not set, the tests that need them print so and pass.
fn weights(file: &str) -> Option<Vec<TensorData>> {
    let Some(folder) = std::env::var_os("VISAGE_WEIGHTS") else {
        eprintln!("skipped: VISAGE_WEIGHTS names no folder of published weights");
        return None;
    };
    Some(read_weights(&PathBuf::from(folder).join(file)).unwrap())
}

fn images(side_px: u32) -> Vec<Vec<u8>> {
    vec![golden_input(1, side_px), golden_input(2, side_px)]
}

fn assert_golden(network: &str, answers: &[Vec<f32>], tolerance: f64) {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let expected: Vec<Vec<f64>> = serde_json::from_value(golden[network].clone()).unwrap();
    assert_eq!(answers.len(), expected.len());
    for (answer, expected) in answers.iter().zip(&expected) {
        let step = if answer.len() < 8 { 1 } else { 8 };
        let kept: Vec<f64> = answer.iter().step_by(step).map(|v| f64::from(*v)).collect();
        assert_eq!(kept.len(), expected.len());
        let largest = kept.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(largest < tolerance, "{network} differs by {largest}: {kept:?}, expected {expected:?}");
    }
}

#[test]
fn the_descriptor_is_that_of_dlib() {
    let Some(tensors) = weights("descriptor/dlib_face_recognition_resnet_model_v1.dat") else { return };
    let network = DlibResNet::load(&DlibResNetConfig::face_descriptor(), &tensors, Device::Cpu).unwrap();
    let images = images(150);
    let answers = network.infer(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    assert_golden("descriptor", &answers, 1e-5);
}

#[test]
fn age_and_gender_are_those_of_onnx_runtime() {
    let Some(tensors) = weights("age-gender/age.onnx") else { return };
    let network = DlibResNet::load(&DlibResNetConfig::age(), &tensors, Device::Cpu).unwrap();
    let images = images(64);
    let answers = network.infer(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    assert_golden("age", &answers, 1e-4);

    let Some(tensors) = weights("age-gender/gender.onnx") else { return };
    let network = DlibPlainNet::load(&DlibPlainConfig::gender(), &tensors, Device::Cpu).unwrap();
    let images = self::images(32);
    let answers = network.infer(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    assert_golden("gender", &answers, 1e-4);
}

/// Small numbers of both signs, the same in every run.
fn drawn(shapes: HashMap<String, Vec<i64>>) -> Vec<TensorData> {
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let n = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let noise = golden_input(name.len() as u64, 16).into_iter().cycle();
        let bytes = noise.take(n).flat_map(|byte| ((f32::from(byte) - 90.0) / 1000.0).to_le_bytes()).collect();
        TensorData { name, shape, dtype: Dtype::F32, bytes }
    };
    shapes.into_iter().map(tensor).collect()
}

fn small() -> DlibResNetConfig {
    let blocks = [(4, false), (6, true), (6, false), (8, true)].map(|(width, down)| DlibBlock { width, down });
    DlibResNetConfig { side_px: 50, stem_width: 4, blocks: blocks.to_vec(), n_outputs: 5, fc_bias: true }
}

#[test]
fn folding_and_filling_up_keep_the_answer() {
    let (config, tensors) = (small(), drawn(small().shapes()));
    let network = DlibResNet::load(&config, &tensors, Device::Cpu).unwrap();
    let image = golden_input(3, config.side_px);
    let answer = &network.infer(&[&image]).unwrap()[0];

    // Layer by layer as dlib computes it: nothing folded, everything padded with zeros.
    let loaded = CheckedTensors::check(&config.shapes(), &tensors, Device::Cpu).unwrap();
    let get = |name: String| loaded.tensor(&name).unwrap();
    let layer = |x: &Tensor, prefix: &str, n: usize, stride: i64, padding: i64| {
        let (weight, bias) = (get(format!("{prefix}conv{n}.weight")), get(format!("{prefix}conv{n}.bias")));
        let y = x.conv2d(&weight, Some(bias), [stride; 2], [padding; 2], [1, 1], 1);
        let (scale, offset) = (get(format!("{prefix}affine{n}.weight")), get(format!("{prefix}affine{n}.bias")));
        y * scale.view([1, -1, 1, 1]) + offset.view([1, -1, 1, 1])
    };
    let x = network.normalisation.apply(&image, 1, config.side_px).unwrap();
    let mut x = layer(&x, "", 1, 2, 0).relu().max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false);
    for (i, block) in config.blocks.iter().enumerate() {
        let prefix = format!("blocks.{i}.");
        let (stride, padding) = if block.down { (2, 0) } else { (1, 1) };
        let y = layer(&layer(&x, &prefix, 1, stride, padding).relu(), &prefix, 2, 1, 1);
        if block.down {
            x = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        }
        let target: Vec<i64> = y.size().iter().zip(x.size()).map(|(a, b)| *a.max(&b)).collect();
        let filled = |t: &Tensor| {
            let size = t.size();
            t.constant_pad_nd([0, target[3] - size[3], 0, target[2] - size[2], 0, target[1] - size[1]])
        };
        x = (filled(&y) + filled(&x)).relu();
    }
    let x = x.mean_dim([2i64, 3].as_slice(), false, Kind::Float);
    let expected = Vec::<f32>::try_from(x.linear(&get("fc.weight".into()), Some(&get("fc.bias".into()))).view([-1]));
    for (a, b) in answer.iter().zip(&expected.unwrap()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn a_batch_answers_like_its_images_alone() {
    let network = DlibResNet::load(&small(), &drawn(small().shapes()), Device::Cpu).unwrap();
    let images: Vec<_> = (0..3).map(|seed| golden_input(seed, 50)).collect();
    let together = network.infer(&images.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    assert_eq!(together.len(), 3);
    for (image, row) in images.iter().zip(&together) {
        let alone = &network.infer(&[image]).unwrap()[0];
        assert!(alone.iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn wrong_weights_and_pixels_are_named() {
    let mut tensors = drawn(small().shapes());
    let network = DlibResNet::load(&small(), &tensors, Device::Cpu).unwrap();
    assert!(network.infer(&[&golden_input(0, 49)]).is_err());
    assert!(network.infer(&[]).unwrap().is_empty());
    tensors[0].shape.push(1);
    let last = tensors.pop().unwrap();
    tensors.push(TensorData { name: "stranger".to_owned(), ..last.clone() });
    let error = DlibResNet::load(&small(), &tensors, Device::Cpu).unwrap_err().to_string();
    for named in [tensors[0].name.as_str(), last.name.as_str(), "stranger"] {
        assert!(error.contains(named), "{error} does not name {named}");
    }
    let error = DlibPlainNet::load(&DlibPlainConfig::gender(), &tensors, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("more"), "{error}");
}
