//! Weights that claim to be safetensors.

#![no_main]

use libfuzzer_sys::fuzz_target;
use visage::nn::parse_safetensors;

fuzz_target!(|data: &[u8]| drop(parse_safetensors(data)));
