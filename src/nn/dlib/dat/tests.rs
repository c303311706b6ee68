use proptest::prelude::*;

use super::*;

/// Writes dlib's format.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, n: i64) -> &mut Self {
        let bytes = n.unsigned_abs().to_le_bytes();
        let len = (8 - n.unsigned_abs().leading_zeros() as usize / 8).max(1);
        self.0.push(len as u8 | if n < 0 { 0x80 } else { 0 });
        self.0.extend_from_slice(&bytes[..len]);
        self
    }

    fn numbers(&mut self, numbers: &[i64]) -> &mut Self {
        for n in numbers {
            self.number(*n);
        }
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as i64).0.extend_from_slice(text.as_bytes());
        self
    }

    fn real(&mut self, thousandths: i64) -> &mut Self {
        // Accurate to a thousandth, by a mantissa over 2^40.
        self.number(((thousandths as f64 / 1000.0) * 2f64.powi(40)) as i64).number(-40)
    }

    /// Writes a tensor of weights that count up from `first`.
    fn tensor(&mut self, shape: [i64; 4], first: i64) -> &mut Self {
        self.number(2).numbers(&shape);
        let n: i64 = shape.iter().product();
        self.0.extend((first..first + n).flat_map(|i| (i as f32).to_le_bytes()));
        self
    }

    fn conv(&mut self, n_in: i64, n_out: i64, window: [i64; 3]) -> &mut Self {
        let [size, stride, padding] = window;
        self.text("con_4").tensor([n_out * (n_in * size * size + 1), 1, 1, 1], 100);
        self.numbers(&[n_out, size, size, stride, stride, padding, padding]);
        self.numbers(&[1, n_out, n_in, size, size]).numbers(&[1, 1, n_out, 1, 1]);
        self.real(1000).real(1000).real(1000).real(0)
    }

    fn affine(&mut self, n: i64) -> &mut Self {
        self.text("affine_").tensor([2, n, 1, 1], 500);
        self.numbers(&[1, 1, n, 1, 1]).numbers(&[1, 1, n, 1, 1]).number(0)
    }

    fn end_of_layer(&mut self) -> &mut Self {
        self.0.extend_from_slice(b"110");
        self.tensor([0; 4], 0).tensor([0; 4], 0).tensor([0; 4], 0)
    }
}

/// Writes a network: a stem, one block that halves the image, the mean, and a linear layer of three outputs.
fn tiny() -> Vec<u8> {
    let mut file = Writer::default();
    file.number(1).text("loss_metric_2").real(40).real(600);
    // fc, mean, relu, add, pool of the shortcut; skip and tag; affine, conv, relu, affine, conv; tag; pool, relu,
    // affine, conv.
    file.numbers(&[2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 2, 1, 2, 2, 2, 3]);
    file.text("input_rgb_image_sized").real(122_782).real(117_001).real(104_298).numbers(&[150, 150]);
    file.conv(3, 2, [7, 2, 0]).end_of_layer().number(1);
    file.affine(2).end_of_layer();
    file.text("relu_").end_of_layer();
    file.text("max_pool_2").numbers(&[3, 3, 2, 2, 0, 0]).end_of_layer();
    file.conv(2, 4, [3, 2, 0]).end_of_layer();
    file.affine(4).end_of_layer();
    file.text("relu_").end_of_layer();
    file.conv(4, 4, [3, 1, 1]).end_of_layer();
    file.affine(4).end_of_layer();
    file.text("avg_pool_2").numbers(&[2, 2, 2, 2, 0, 0]).end_of_layer();
    file.text("add_prev_").end_of_layer();
    file.text("relu_").end_of_layer();
    file.text("avg_pool_2").numbers(&[0, 0, 1, 1, 0, 0]).end_of_layer();
    file.text("fc_2").numbers(&[3, 4]).tensor([4, 3, 1, 1], 1);
    file.numbers(&[1, 4, 3, 1, 1]).numbers(&[1, 0, 0, 0, 0]).number(1);
    file.real(1000).real(1000).real(0).real(0).end_of_layer();
    file.0
}

fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut file = tiny();
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    file.splice(at..at + from.len(), to.iter().copied());
    file
}

#[test]
fn a_network_is_read_in_forward_order() {
    let tensors = parse_dlib_dat(&tiny()).unwrap();
    let names: Vec<(&str, &[i64])> = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let expected: [(&str, &[i64]); 13] = [
        ("conv1.weight", &[2, 3, 7, 7]),
        ("conv1.bias", &[2]),
        ("affine1.weight", &[2]),
        ("affine1.bias", &[2]),
        ("blocks.0.conv1.weight", &[4, 2, 3, 3]),
        ("blocks.0.conv1.bias", &[4]),
        ("blocks.0.affine1.weight", &[4]),
        ("blocks.0.affine1.bias", &[4]),
        ("blocks.0.conv2.weight", &[4, 4, 3, 3]),
        ("blocks.0.conv2.bias", &[4]),
        ("blocks.0.affine2.weight", &[4]),
        ("blocks.0.affine2.bias", &[4]),
        ("fc.weight", &[3, 4]),
    ];
    assert_eq!(names, expected);
    let values =
        |bytes: &[u8]| -> Vec<f32> { bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect() };
    // dlib's [inputs, outputs] counts 1, 2, 3 along the outputs of the first input.
    assert_eq!(values(&tensors[12].bytes)[..5], [1.0, 4.0, 7.0, 10.0, 2.0]);
    assert_eq!(values(&tensors[1].bytes), [394.0, 395.0]);
    assert_eq!(values(&tensors[3].bytes), [502.0, 503.0]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let mut longer = tiny();
    longer.push(0);
    let cases: [(Vec<u8>, &[&str]); 8] = [
        (longer, &["1 bytes are left"]),
        (tiny()[..400].to_vec(), &["at byte", "convolution's weights", "are left"]),
        (replaced(b"add_prev_", b"mul_prev_"), &["at byte", "mul_prev_"]),
        (replaced(b"relu_", b"htan_"), &["htan_"]),
        (replaced(b"loss_metric_2", b"loss_binary_2"), &["loss_binary_2"]),
        (replaced(b"\x0amax_pool_2\x01\x03\x01\x03", b"\x0amax_pool_2\x01\x04\x01\x04"), &["layer 4", "maximum pool"]),
        (replaced(b"\x0amax_pool_2\x01\x03\x01\x03", b"\x0amax_pool_2\x01\x03\x01\x04"), &["3 by 4"]),
        (Vec::new(), &["at byte 0", "0 are left"]),
    ];
    for (i, (file, words)) in cases.into_iter().enumerate() {
        let error = parse_dlib_dat(&file).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{i}: {error} does not say {words:?}");
    }
}

#[test]
fn a_few_bytes_ask_for_no_memory() {
    let mut file = Writer::default();
    file.number(1).text("loss_metric_").numbers(&[3]);
    file.text("input_rgb_image").real(122_782).real(117_001).real(104_298).text("con_4");
    for shape in [[i64::MAX; 4], [1 << 40, 1, 1, 1], [-1, 1, 1, 1], [-1, -1, 1, 1]] {
        let mut file = Writer(file.0.clone());
        file.number(2).numbers(&shape);
        assert!(parse_dlib_dat(&file.0).unwrap_err().contains("convolution's weights"));
    }
    let deep = [Writer::default().number(1).text("loss_metric_").0.as_slice(), &b"\x01\x02".repeat(100_000)].concat();
    assert!(parse_dlib_dat(&deep).unwrap_err().contains("more than"));
}

proptest! {
    #[test]
    fn damaged_files_end_in_tensors_or_an_error(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = tiny();
        prop_assert!(parse_dlib_dat(&file[..cut.index(file.len())]).is_err());
        let at = at.index(file.len());
        file[at] = byte;
        for tensor in parse_dlib_dat(&file).unwrap_or_default() {
            prop_assert_eq!(tensor.shape.iter().product::<i64>() * 4, tensor.bytes.len() as i64);
        }
    }

    #[test]
    fn any_bytes_end_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_dlib_dat(&bytes).is_err());
        prop_assert!(parse_dlib_dat(&[&tiny()[..30], &bytes].concat()).is_err());
    }
}

#[test]
fn fuzzing_begins_with_this_file() {
    let seed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/dlib_dat/tiny.dat");
    assert!(std::fs::read(&seed).unwrap() == tiny(), "{} is another file", seed.display());
}
