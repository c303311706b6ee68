//! Fuzzes the decoding of JPEG.

#![no_main]

mod images;

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: images::allow_contained_panics(), |data: &[u8]| images::read(data, |data| data.starts_with(b"\xff\xd8\xff")));
