//! Fuzzes the reader of dlib's shape predictors.

#![no_main]

use libfuzzer_sys::fuzz_target;
use visage::nn::parse_dlib_shape;

fuzz_target!(|data: &[u8]| drop(parse_dlib_shape(data)));
