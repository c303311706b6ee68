//! What a photo costs before the network sees it. `visage-measure eval` puts a large one beside the `image` crate.

#![expect(missing_docs, reason = "criterion's macros make public functions without any")]
#![expect(clippy::expect_used, reason = "the fixture is a photo, and so is what is made of it")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use visage::vision::{DecodeLimits, DecodeSize, decode, to_pixels};

const PORTRAIT: &[u8] = include_bytes!("../tests/fixtures/portrait.jpg");

fn pixels(c: &mut Criterion) {
    let limits = DecodeLimits::default();
    let image = decode(PORTRAIT, &limits, DecodeSize::Full).expect("the fixture is a photo");
    let size = format!("{} x {}", image.width_px(), image.height_px());
    c.bench_function(&format!("decode a JPEG of {size}"), |b| {
        b.iter(|| decode(black_box(PORTRAIT), &limits, DecodeSize::Full));
    });
    c.bench_function(&format!("{size} to 224 px"), |b| b.iter(|| to_pixels(black_box(&image), 224)));
}

criterion_group!(benches, pixels);
criterion_main!(benches);
