use proptest::prelude::*;

use super::*;
use crate::nn::onnx::parse_onnx;

/// Writes protocol buffers.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut n: u64) -> Self {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
        self
    }

    fn number(self, tag: u64, n: i64) -> Self {
        self.varint(tag << 3).varint(n.cast_unsigned())
    }

    fn bytes(self, tag: u64, bytes: &[u8]) -> Self {
        let mut this = self.varint(tag << 3 | 2).varint(bytes.len() as u64);
        this.0.extend_from_slice(bytes);
        this
    }

    fn text(self, tag: u64, text: &str) -> Self {
        self.bytes(tag, text.as_bytes())
    }
}

fn tensor(name: &str, shape: &[i64], raw: &[u8], data_type: i64) -> Message {
    let message = shape.iter().fold(Message::default(), |message, d| message.number(1, *d));
    message.number(2, data_type).text(8, name).bytes(9, raw)
}

/// A tensor of f32 that counts from zero.
fn counting(name: &str, shape: &[i64]) -> Message {
    let n: i64 = shape.iter().product();
    let raw: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
    tensor(name, shape, &raw, 1)
}

fn node(op: &str, inputs: &[&str], output: &str, ints: &[(&str, &[i64])], numbers: &[(&str, i64)]) -> Message {
    let mut message = inputs.iter().fold(Message::default(), |message, input| message.text(1, input));
    message = message.text(2, output).text(3, &format!("{output}_node")).text(4, op);
    for (name, values) in ints {
        let packed = values.iter().fold(Message::default(), |message, n| message.varint(n.cast_unsigned()));
        message = message.bytes(5, &Message::default().text(1, name).bytes(8, &packed.0).number(20, 7).0);
    }
    for (name, n) in numbers {
        message = message.bytes(5, &Message::default().text(1, name).number(3, *n).number(20, 2).0);
    }
    message
}

#[derive(Clone, Default)]
struct Model {
    nodes: Vec<Message>,
    tensors: Vec<Message>,
    last: String,
}

impl Model {
    /// A convolution with its affine layer.
    fn conv(&mut self, n: usize, shape: [i64; 4], stride: i64, padding: i64) {
        let named = |what: &str| format!("layer_{n}_{what}");
        let (weight, bias, scale, offset) = (named("weights"), named("bias"), named("scale"), named("offset"));
        let by_channel = [1, shape[0], 1, 1];
        self.tensors.extend([counting(&weight, &shape), counting(&bias, &shape[..1])]);
        self.tensors.extend([counting(&scale, &by_channel), counting(&offset, &by_channel)]);
        let ints: [(&str, &[i64]); 3] =
            [("kernel_shape", &shape[2..]), ("strides", &[stride; 2]), ("pads", &[padding; 4])];
        self.node(node("Conv", &[&self.last, &weight, &bias], &named("conv"), &ints, &[]), &named("conv"));
        self.node(node("Mul", &[&self.last, &scale], &named("mul"), &[], &[]), &named("mul"));
        self.node(node("Add", &[&self.last, &offset], &named("add"), &[], &[]), &named("add"));
    }

    fn relu(&mut self, output: &str) {
        self.node(node("Relu", &[&self.last], output, &[], &[]), output);
    }

    fn node(&mut self, node: Message, output: &str) {
        self.nodes.push(node);
        self.last = output.to_owned();
    }

    fn pads(&mut self, name: &str) {
        let raw: Vec<u8> = [0i64, 0, 0, 0, 0, 2, 1, 1].iter().flat_map(|n| n.to_le_bytes()).collect();
        self.tensors.push(tensor(name, &[8], &raw, 7));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut graph = self.nodes.iter().fold(Message::default(), |graph, node| graph.bytes(1, &node.0));
        graph = self.tensors.iter().fold(graph, |graph, tensor| graph.bytes(5, &tensor.0));
        graph = graph.bytes(12, &Message::default().text(1, "probabilities").0);
        Message::default().number(1, 10).text(2, "a test").bytes(7, &graph.0).0
    }

    /// A stem, a block, a block that halves the image, the mean and a linear layer, numbered from the end.
    fn residual() -> Self {
        let mut model = Self { last: "images".to_owned(), ..Self::default() };
        model.conv(9, [2, 3, 7, 7], 2, 0);
        model.relu("stem");
        let window: [(&str, &[i64]); 2] = [("kernel_shape", &[3, 3]), ("strides", &[2, 2])];
        model.node(node("MaxPool", &["stem"], "pool", &window, &[("ceil_mode", 0)]), "pool");
        model.conv(8, [2, 2, 3, 3], 1, 1);
        model.relu("inside");
        model.conv(7, [2, 2, 3, 3], 1, 1);
        model.node(node("Add", &["layer_7_add", "pool"], "sum", &[], &[]), "sum");
        model.relu("block");
        model.conv(6, [4, 2, 3, 3], 2, 0);
        model.relu("inside2");
        model.conv(5, [4, 4, 3, 3], 1, 1);
        model.pads("left");
        model.pads("right");
        let half: [(&str, &[i64]); 2] = [("kernel_shape", &[2, 2]), ("strides", &[2, 2])];
        model.nodes.push(node("AveragePool", &["block"], "around", &half, &[("count_include_pad", 0)]));
        model.nodes.push(node("Pad", &["around", "left"], "padded", &[], &[]));
        model.nodes.push(node("Pad", &["layer_5_add", "right"], "path", &[], &[]));
        model.node(node("Add", &["padded", "path"], "sum2", &[], &[]), "sum2");
        model.relu("block2");
        model.node(node("GlobalAveragePool", &["block2"], "mean", &[], &[]), "mean");
        model.node(node("Flatten", &["mean"], "flat", &[], &[("axis", 1)]), "flat");
        model.tensors.extend([counting("layer_1_weights", &[4, 3]), counting("layer_1_bias", &[3])]);
        model.node(
            node("Gemm", &["flat", "layer_1_weights", "layer_1_bias"], "logits", &[], &[("transB", 0)]),
            "logits",
        );
        model.node(node("Softmax", &["logits"], "probabilities", &[], &[("axis", 1)]), "probabilities");
        model
    }
}

#[test]
fn a_graph_gives_its_weights_their_names() {
    let tensors = parse_dlib_onnx(&Model::residual().bytes()).unwrap();
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[..4], ["conv1.weight", "conv1.bias", "affine1.weight", "affine1.bias"]);
    assert_eq!(
        names[16..],
        [
            "blocks.1.conv2.weight",
            "blocks.1.conv2.bias",
            "blocks.1.affine2.weight",
            "blocks.1.affine2.bias",
            "fc.weight",
            "fc.bias"
        ]
    );
    assert_eq!(tensors[2].shape, [2]);
    assert_eq!(tensors[20].shape, [3, 4]);
    // The file's [inputs, outputs] counts along the outputs of the first input.
    let second = f32::from_le_bytes(tensors[20].bytes[4..8].try_into().unwrap());
    assert_eq!(second, 3.0);
}

#[test]
fn initialisers_keep_the_names_of_the_file() {
    let tensors = parse_onnx(&Model::residual().bytes()).unwrap();
    let left = tensors.iter().find(|t| t.name == "left").unwrap();
    assert_eq!((left.dtype, left.shape.as_slice(), left.bytes.len()), (Dtype::I64, [8].as_slice(), 64));
    assert_eq!(tensors.len(), 24);
    // Numbers that are listed instead of stored as bytes.
    let floats: Vec<u8> = [1.5f32, 2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut model = Model::default();
    model.tensors.push(Message::default().number(1, 2).number(2, 1).text(8, "f").bytes(4, &floats));
    model.tensors.push(Message::default().number(1, 2).number(2, 7).text(8, "i").number(7, -1).number(7, 300));
    let tensors = parse_onnx(&model.bytes()).unwrap();
    assert_eq!(tensors[0].bytes, floats);
    assert_eq!(tensors[1].bytes, [(-1i64).to_le_bytes(), 300i64.to_le_bytes()].concat());
}

#[test]
fn tensors_that_cannot_be_read_are_named() {
    let cases = [
        (tensor("half", &[1], &[0; 2], 10), "half has the data type 10"),
        (tensor("short", &[3], &[0; 8], 1), "short has 8 bytes"),
        (tensor("huge", &[i64::MAX, i64::MAX], &[], 1), "huge has 0 bytes"),
        (tensor("negative", &[-1], &[], 1), "negative has 0 bytes"),
        (tensor("deep", &[1; 9], &[0; 4], 1), "more than 8"),
        (tensor("", &[1], &[0; 4], 1), "without a name"),
        (counting("far", &[1]).bytes(13, b""), "far is stored in another file"),
        (counting("far", &[1]).number(14, 1), "far is stored in another file"),
        (counting("twice", &[1]).bytes(4, &[0; 4]), "twice stores its numbers twice"),
    ];
    for (tensor, words) in cases {
        let model = Model { tensors: vec![tensor], ..Model::default() };
        let error = parse_onnx(&model.bytes()).unwrap_err();
        assert!(error.contains(words), "{error} does not say {words}");
    }
    assert!(parse_onnx(b"").unwrap_err().contains("no graph"));
}

#[test]
fn another_graph_is_refused_by_its_unexpected_node() {
    let changed = |change: &dyn Fn(&mut Model)| {
        let mut model = Model::residual();
        change(&mut model);
        parse_dlib_onnx(&model.bytes()).unwrap_err()
    };
    let at = |model: &Model, output: &str| {
        let name = format!("{output}_node");
        model.nodes.iter().position(|node| node.0.windows(name.len()).any(|w| w == name.as_bytes())).unwrap()
    };
    let swapped = |output: &'static str, new: Message| {
        changed(&move |model| {
            let i = at(model, output);
            model.nodes[i] = new.clone();
        })
    };
    let unknown = swapped("stem", node("Tanh", &["layer_9_add"], "stem", &[], &[]));
    assert!(unknown.contains("stem_node (Tanh)"), "{unknown}");
    let astray = swapped("sum", node("Add", &["layer_7_add", "stem"], "sum", &[], &[]));
    assert!(astray.contains("sum_node (Add)") && astray.contains("pool"), "{astray}");
    let wider: [(&str, &[i64]); 2] = [("kernel_shape", &[4, 4]), ("strides", &[2, 2])];
    let pool = swapped("pool", node("MaxPool", &["stem"], "pool", &wider, &[]));
    assert!(pool.contains("layer 4") && pool.contains("size: 4"), "{pool}");
    let ceiling = swapped("around", node("AveragePool", &["block"], "around", &wider, &[("ceil_mode", 1)]));
    assert!(ceiling.contains("edges"), "{ceiling}");
    let unshifted = changed(&|model| {
        let i = at(model, "layer_9_add");
        model.nodes.remove(i);
    });
    assert!(unshifted.contains("stem_node"), "{unshifted}");
    let unused = changed(&|model| model.tensors.push(counting("stranger", &[1])));
    assert!(unused.contains("stranger"), "{unused}");
    let twice = changed(&|model| model.tensors.push(counting("layer_9_bias", &[2])));
    assert!(twice.contains("layer_9_bias"), "{twice}");
    let missing = changed(&|model| drop(model.tensors.remove(0)));
    assert!(missing.contains("layer_9_weights"), "{missing}");
    let short = changed(&|model| drop(model.nodes.pop()));
    assert!(short.contains("probabilities"), "{short}");
}

proptest! {
    #[test]
    fn damaged_files_end_in_tensors_or_an_error(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = Model::residual().bytes();
        prop_assert!(parse_onnx(&file[..cut.index(file.len())]).is_err());
        let at = at.index(file.len());
        file[at] = byte;
        for tensor in parse_onnx(&file).unwrap_or_default().into_iter().chain(parse_dlib_onnx(&file).unwrap_or_default()) {
            let width = if tensor.dtype == Dtype::F32 { 4 } else { 8 };
            prop_assert_eq!(tensor.shape.iter().product::<i64>() * width, tensor.bytes.len() as i64);
        }
    }

    #[test]
    fn any_bytes_end_in_tensors_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_dlib_onnx(&bytes);
        prop_assert!(parse_dlib_onnx(&Message::default().bytes(7, &bytes).0).is_err());
    }
}

#[test]
fn fuzzing_begins_with_this_file() {
    let seed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/onnx/residual.onnx");
    assert!(std::fs::read(&seed).unwrap() == Model::residual().bytes(), "{} is another file", seed.display());
}
