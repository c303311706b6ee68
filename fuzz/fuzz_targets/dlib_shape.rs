//! Weights that claim to be shape predictors that dlib wrote.

#![no_main]

use libfuzzer_sys::fuzz_target;
use visage::nn::parse_dlib_shape;

fuzz_target!(|data: &[u8]| drop(parse_dlib_shape(data)));
