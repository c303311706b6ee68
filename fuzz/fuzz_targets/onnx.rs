//! Fuzzes the reader of dlib's networks as ONNX.

#![no_main]

use libfuzzer_sys::fuzz_target;
use visage::nn::parse_dlib_onnx;

fuzz_target!(|data: &[u8]| drop(parse_dlib_onnx(data)));
