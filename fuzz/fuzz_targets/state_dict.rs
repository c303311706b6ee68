//! Fuzzes the reader of PyTorch state dicts.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use visage::nn::parse_state_dict;

fuzz_target!(|data: &[u8]| drop(parse_state_dict(Cursor::new(data))));
