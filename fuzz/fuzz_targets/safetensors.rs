//! Fuzzes the reader of safetensors.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use visage::nn::parse_safetensors;

fuzz_target!(|data: &[u8]| drop(parse_safetensors(&Bytes::copy_from_slice(data))));
