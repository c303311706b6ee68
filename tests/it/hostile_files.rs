//! Feeds malicious files to all parsers of foreign files: the seeds of `fuzz/`, and mutations of them.
//!
//! Fuzzing itself needs a nightly toolchain and hours. This is its stable part: the same functions, with the same
//! mutations every time. Nothing may panic, and the same input must give the same result.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use visage::{
    nn::{parse_dlib_dat, parse_dlib_onnx, parse_dlib_shape, parse_safetensors, parse_state_dict},
    vision::{DecodeLimits, DecodeSize, decode},
};

/// The number of mutations per seed.
const N_MUTATIONS: u64 = 300;

#[test]
fn photos() {
    for format in ["jpeg", "png", "webp"] {
        let limits = DecodeLimits { max_pixels: 1 << 20, max_alloc_bytes: 32 << 20 };
        replay(format, |bytes| {
            [DecodeSize::Full, DecodeSize::LongSide(20), DecodeSize::ShortSide(1)]
                .map(|wanted| {
                    let decoded = decode(bytes, &limits, wanted);
                    if let Ok(image) = &decoded {
                        let n_pixels = image.width_px() as usize * image.height_px() as usize;
                        assert_eq!(image.rgb().len(), n_pixels * 3);
                        assert!(n_pixels <= 1 << 20);
                    }
                    decoded
                })
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
        });
    }
}

#[test]
fn weights() {
    replay("safetensors", |bytes| parse_safetensors(&Bytes::copy_from_slice(bytes)));
    replay("state_dict", |bytes| parse_state_dict(Cursor::new(bytes)));
    replay("onnx", parse_dlib_onnx);
    replay("dlib_dat", parse_dlib_dat);
    replay("dlib_shape", parse_dlib_shape);
}

/// Parses every seed and its mutations, each twice. A seed must parse unless its name says otherwise.
fn replay<T: PartialEq, E: PartialEq>(folder: &str, read: impl Fn(&[u8]) -> Result<T, E>) {
    let seeds = seeds(folder);
    for (idx, (path, seed)) in seeds.iter().enumerate() {
        let is_refused = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("refused-"));
        assert_eq!(read(seed).is_err(), is_refused, "{}", path.display());
        let other = &seeds[(idx + 1) % seeds.len()].1;
        for mutation in 0..N_MUTATIONS {
            let bytes = mutate(seed, other, mutation);
            assert!(read(&bytes) == read(&bytes), "{}, mutation {mutation}: two answers", path.display());
        }
    }
}

fn seeds(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Mutates a seed; the same number always gives the same mutation.
fn mutate(seed: &[u8], other: &[u8], number: u64) -> Vec<u8> {
    let mut state = number;
    // The generator is SplitMix64.
    let mut random = |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % below.max(1) as u64) as usize
    };
    let mut bytes = seed.to_vec();
    match number % 5 {
        // Flips a few bits, half of the time near the start, where headers are.
        0 | 1 => {
            let within = if number.is_multiple_of(2) { bytes.len() } else { bytes.len().min(200) };
            for _ in 0..=random(6) {
                bytes[random(within)] ^= 1 << random(8);
            }
        }
        // Truncates.
        2 => bytes.truncate(random(bytes.len())),
        // Joins one file's start and another's end.
        3 => {
            bytes.truncate(random(bytes.len()));
            bytes.extend_from_slice(&other[random(other.len())..]);
        }
        // Repeats a piece elsewhere, then adds extreme values.
        _ => {
            let start = random(bytes.len());
            let piece = bytes[start..bytes.len().min(start + 1 + random(64))].to_vec();
            let at = random(bytes.len());
            bytes.splice(at..at, piece);
            for _ in 0..random(4) {
                let at = random(bytes.len());
                bytes[at] = [0, 0xff, 0x7f, 0x80][random(4)];
            }
        }
    }
    bytes
}
