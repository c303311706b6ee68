//! A navigable graph over a segment's vectors. Only this file names `hnsw_rs`.
//!
//! Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
//! World graphs" (2016). `hnsw_rs` leaves some points unreachable after a parallel build, so afterwards a search for
//! every point checks that it is found; the others are listed and compared with every query.

use std::panic::{self, AssertUnwindSafe};

use hnsw_rs::prelude::{Distance, Hnsw};

use super::embedding::dot;

/// Neighbours of a point on the upper layers; twice as many on the lowest.
const MAX_CONNECTIONS: usize = 16;

const MAX_LAYERS: usize = 16;

/// Candidates kept while a point is inserted.
const EF_CONSTRUCTION: usize = 200;

/// Candidates kept while a point searches for itself.
const EF_AUDIT: usize = 32;

/// A point must be among this many nearest to itself: copies of it may come first.
const N_AUDIT: usize = 4;

/// One minus the cosine of vectors of length one; never below zero, despite rounding.
#[derive(Clone, Copy, Debug, Default)]
struct Cosine;

impl Distance<f32> for Cosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - dot(a, b)).max(0.0)
    }
}

/// A graph over vectors, by their position.
pub(super) struct Graph {
    hnsw: Hnsw<'static, f32, Cosine>,
    /// Positions that the graph does not reach, in order.
    stragglers: Vec<usize>,
}

impl Graph {
    /// Builds and audits the graph of contiguous vectors; none if the library panicked.
    pub(super) fn build(vectors: &[f32], dimensions: usize) -> Option<Self> {
        let build = || {
            let points: Vec<&[f32]> = vectors.chunks_exact(dimensions).collect();
            let hnsw = Hnsw::new(MAX_CONNECTIONS, points.len().max(1), MAX_LAYERS, EF_CONSTRUCTION, Cosine);
            for (idx, point) in points.iter().enumerate() {
                hnsw.insert_slice((point, idx));
            }
            let mut graph = Self { hnsw, stragglers: Vec::new() };
            graph.stragglers = points
                .iter()
                .enumerate()
                .filter(|(idx, point)| !graph.neighbours(point, N_AUDIT, EF_AUDIT).contains(idx))
                .map(|(idx, _)| idx)
                .collect();
            graph
        };
        panic::catch_unwind(AssertUnwindSafe(build)).ok()
    }

    /// Returns up to `ef` positions near a vector, nearest first; none if the library panicked.
    pub(super) fn nearest(&self, vector: &[f32], ef: usize) -> Option<Vec<usize>> {
        panic::catch_unwind(AssertUnwindSafe(|| self.neighbours(vector, ef, ef))).ok()
    }

    /// Positions that the graph does not reach, which a search compares in addition.
    pub(super) fn stragglers(&self) -> &[usize] {
        &self.stragglers
    }

    pub(super) fn is_straggler(&self, idx: usize) -> bool {
        self.stragglers.binary_search(&idx).is_ok()
    }

    fn neighbours(&self, vector: &[f32], k: usize, ef: usize) -> Vec<usize> {
        self.hnsw.search(vector, k, ef).into_iter().map(|n| n.d_id).collect()
    }
}
