use proptest::prelude::*;

use super::*;

/// A file in dlib's format as a list of numbers, so that a test can corrupt any of them.
#[derive(Clone)]
struct Stream(Vec<i64>);

impl Stream {
    /// Two cascades of two trees of three splits, over three pixels. Real numbers are halves that count from `first`.
    fn tiny() -> Self {
        let mut stream = Self(vec![1]);
        stream.points(0);
        stream.0.push(2);
        for cascade in 0..2 {
            stream.0.push(2);
            for tree in 0..2 {
                stream.0.push(3);
                for split in 0..3 {
                    stream.0.extend([split, (split + 1) % 3]);
                    stream.halves(100 * cascade + 10 * tree + split..100 * cascade + 10 * tree + split + 1);
                }
                stream.0.push(4);
                (0..4).for_each(|leaf| stream.points(10 * leaf));
            }
        }
        stream.0.extend([2, 3, 0, 4, 2, 3, 1, 1, 3]);
        stream.0.push(2);
        for cascade in 0..2 {
            stream.0.push(3);
            stream.halves(10 * cascade..10 * cascade + 6);
        }
        stream
    }

    fn points(&mut self, first: i64) {
        self.0.extend([-10, -1]);
        self.halves(first..first + 10);
    }

    fn halves(&mut self, range: std::ops::Range<i64>) {
        self.0.extend(range.flat_map(|n| [n, -1]));
    }

    fn with(mut self, at: usize, n: i64) -> Self {
        self.0[at] = n;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let number = |n: &i64| {
            let bytes = n.unsigned_abs().to_le_bytes();
            let len = (8 - n.unsigned_abs().leading_zeros() as usize / 8).max(1);
            [&[len as u8 | if *n < 0 { 0x80 } else { 0 }], &bytes[..len]].concat()
        };
        self.0.iter().flat_map(number).collect()
    }
}

/// The first position of each part of the stream, in numbers.
const CASCADES: usize = 1 + 22;
const TREES: usize = CASCADES + 1;
const SPLITS: usize = TREES + 1;
const LEAVES: usize = SPLITS + 1 + 3 * 4;
const TREE: usize = 1 + 3 * 4 + 1 + 4 * 22;
const ANCHORS: usize = TREES + 2 * (1 + 2 * TREE);
const DELTAS: usize = ANCHORS + 1 + 2 * 4;

fn floats(tensor: &TensorData) -> Vec<f32> {
    tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn integers(tensor: &TensorData) -> Vec<i64> {
    tensor.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_part_has_its_tensor() {
    let tensors = parse_dlib_shape(&Stream::tiny().bytes()).unwrap();
    let about: Vec<(&str, &[i64], Dtype)> = tensors.iter().map(|t| (&*t.name, &*t.shape, t.dtype)).collect();
    let expected: [(&str, &[i64], Dtype); 6] = [
        ("shape.anchors", &[2, 3], Dtype::I64),
        ("shape.deltas", &[2, 3, 2], Dtype::F32),
        ("shape.initial", &[5, 2], Dtype::F32),
        ("shape.leaves", &[2, 2, 4, 10], Dtype::F32),
        ("shape.splits", &[2, 2, 3, 2], Dtype::I64),
        ("shape.thresholds", &[2, 2, 3], Dtype::F32),
    ];
    assert_eq!(about, expected);
    assert_eq!(integers(&tensors[0]), [0, 4, 2, 1, 1, 3]);
    assert_eq!(floats(&tensors[1])[5..8], [2.5, 5.0, 5.5]);
    assert_eq!(floats(&tensors[2]), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]);
    assert_eq!(floats(&tensors[3])[35..45], [17.5, 18.0, 18.5, 19.0, 19.5, 0.0, 0.5, 1.0, 1.5, 2.0]);
    assert_eq!(integers(&tensors[4])[..8], [0, 1, 1, 2, 2, 0, 0, 1]);
    assert_eq!(floats(&tensors[5]), [0.0, 0.5, 1.0, 5.0, 5.5, 6.0, 50.0, 50.5, 51.0, 55.0, 55.5, 56.0]);
}

#[test]
fn matrices_of_older_files_are_read() {
    let older = Stream::tiny().with(1, 10).with(2, 1);
    assert_eq!(parse_dlib_shape(&older.bytes()), parse_dlib_shape(&Stream::tiny().bytes()));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let second = TREE;
    let cases: [(usize, i64, &[&str]); 19] = [
        (0, 2, &["at byte 2:", "version", "found 2"]),
        (1, -136, &["average shape", "136 by 1", "only predictors of 5 points"]),
        (2, 1, &["average shape"]),
        (4, 32002, &["average shape", "not finite"]),
        (CASCADES, 0, &["cascades", "none"]),
        (CASCADES, 1 << 40, &["cascades", "announced"]),
        (TREES, 0, &["cascade 0", "trees", "none"]),
        (TREES, -1, &["cascade 0", "trees: -1"]),
        (TREES + 1 + 2 * TREE, 1, &["cascade 1", "trees: 1 where there were 2"]),
        (SPLITS + second, 2, &["cascade 0, tree 1", "splits: 2 where there were 3"]),
        (SPLITS + 1 + 4 + 3, 200, &["cascade 0, tree 0", "threshold is too large"]),
        (SPLITS + second + 2, 3, &["cascade 0, tree 1", "pixel 3 of 3"]),
        (SPLITS + 1, -1, &["cascade 0, tree 0", "pixel -1 of 3"]),
        (LEAVES, 3, &["3 splits and 3 leaves"]),
        (ANCHORS, 1, &["landmarks have 1 cascades, the forests have 2"]),
        (ANCHORS + 2, 5, &["cascade 0", "landmark 5 of 5"]),
        (ANCHORS + 5, 2, &["cascade 1", "landmarks: 2 where there were 3"]),
        (DELTAS, 3, &["ways have 3 cascades"]),
        (DELTAS + 1, 2, &["cascade 0", "ways: 2 where there were 3"]),
    ];
    for (at, n, words) in cases {
        let error = parse_dlib_shape(&Stream::tiny().with(at, n).bytes()).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{at}: {error} does not say {words:?}");
        assert!(error.starts_with("at byte "), "{error}");
    }
    let mut longer = Stream::tiny().bytes();
    longer.push(0);
    assert!(parse_dlib_shape(&longer).unwrap_err().contains("1 bytes are left"));
    assert!(parse_dlib_shape(&[]).unwrap_err().contains("at byte 0"));
}

#[test]
fn a_tree_must_be_full() {
    let mut stream = Stream::tiny();
    // Two splits and three leaves in every tree.
    for tree in (0..4).rev() {
        let start = SPLITS + tree * TREE + tree / 2;
        stream.0.drain(start + TREE - 22..start + TREE);
        stream.0.drain(start + 9..start + 13);
        (stream.0[start], stream.0[start + 9]) = (2, 3);
    }
    assert!(parse_dlib_shape(&stream.bytes()).unwrap_err().contains("2 splits and 3 leaves do not form a full tree"));
}

#[test]
fn a_few_bytes_ask_for_no_memory() {
    let stream = Stream::tiny();
    for end in [CASCADES, TREES, SPLITS, LEAVES, ANCHORS, ANCHORS + 1, DELTAS, DELTAS + 1] {
        let mut short = Stream(stream.0[..end].to_vec());
        short.0.extend([i64::MAX, 1, 1, 1]);
        assert!(parse_dlib_shape(&short.bytes()).unwrap_err().contains("are announced"), "{end}");
    }
}

fn is_whole(tensor: &TensorData) -> bool {
    let width = if tensor.dtype == Dtype::I64 { 8 } else { 4 };
    let finite = tensor.dtype == Dtype::I64 || floats(tensor).iter().all(|v| v.is_finite());
    tensor.shape.iter().product::<i64>() * width == tensor.bytes.len() as i64 && finite
}

proptest! {
    #[test]
    fn damaged_files_end_in_tensors_or_an_error(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = Stream::tiny().bytes();
        prop_assert!(parse_dlib_shape(&file[..cut.index(file.len())]).is_err());
        let at = at.index(file.len());
        file[at] = byte;
        prop_assert!(parse_dlib_shape(&file).unwrap_or_default().iter().all(is_whole));
    }

    #[test]
    fn a_wrong_number_ends_in_tensors_or_an_error(
        at in any::<prop::sample::Index>(),
        n in any::<i64>(),
        small in -20..20i64,
    ) {
        let stream = Stream::tiny();
        let at = at.index(stream.0.len());
        for n in [n.max(-i64::MAX), small] {
            let tensors = parse_dlib_shape(&stream.clone().with(at, n).bytes());
            prop_assert!(tensors.unwrap_or_default().iter().all(is_whole));
        }
    }

    #[test]
    fn any_bytes_end_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_dlib_shape(&bytes).is_err());
        prop_assert!(parse_dlib_shape(&[&Stream::tiny().bytes()[..60], &bytes].concat()).is_err());
    }
}

#[test]
fn fuzzing_begins_with_this_file() {
    let seed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/dlib_shape/tiny.dat");
    assert!(std::fs::read(&seed).unwrap() == Stream::tiny().bytes(), "{} is another file", seed.display());
}
