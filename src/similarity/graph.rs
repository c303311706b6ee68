//! A navigable graph over a segment's vectors. Only this file names `hnsw_rs`.
//!
//! Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
//! World graphs" (2016). `hnsw_rs` leaves some vectors unreachable, so after the build a search for every vector checks
//! that it is found; the others are listed and compared with every query. Equal vectors share one node, because a node
//! whose neighbours are all copies of it leads nowhere.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hnsw_rs::prelude::{Distance, Hnsw};

use super::{
    embedding::dot,
    vectors::{Locked, Vectors},
};

/// Neighbours of a point on the upper layers; twice as many on the lowest.
const MAX_CONNECTIONS: usize = 16;

const MAX_LAYERS: usize = 16;

/// Candidates kept while a point is inserted.
const EF_CONSTRUCTION: usize = 200;

/// Candidates kept while a vector searches for itself.
const EF_AUDIT: usize = 32;

/// A vector must be among this many nearest to itself: rounding may put others, almost equal, before it.
const N_AUDIT: usize = 4;

/// With more stragglers than one in this many vectors, a search of the graph is no faster than a scan.
const MIN_VECTORS_PER_STRAGGLER: usize = 16;

/// One minus the cosine of vectors of length one; never below zero, despite rounding.
///
/// The library's points hold no vectors, only positions among the segment's: so a vector is in memory once, and can be
/// overwritten. A position is the bits of a single number; a vector that is searched for has one number more than its
/// dimensions.
#[derive(Clone)]
struct Cosine(Arc<Vectors>);

impl Cosine {
    fn point(idx: usize) -> [f32; 1] {
        [f32::from_bits(idx as u32)]
    }

    fn query(vector: &[f32]) -> Vec<f32> {
        [vector, &[0.0]].concat()
    }
}

impl Distance<f32> for Cosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: the library compares only in `Graph::insert` and `Graph::nodes`, which hold the vectors' lock.
        let vectors = unsafe { self.0.read_locked() };
        (1.0 - dot(vector_of(a, &vectors), vector_of(b, &vectors))).max(0.0)
    }
}

/// Returns the vector of a point or a query.
fn vector_of<'a>(point: &'a [f32], vectors: &'a Locked<&Vec<f32>>) -> &'a [f32] {
    match point {
        [position] => vectors.of(position.to_bits() as usize),
        query => &query[..query.len() - 1],
    }
}

/// Why there is no graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoGraph {
    /// The build was asked to stop.
    Stopped,
    /// The library panicked, or its graph reaches too few vectors.
    Unusable,
}

/// A graph over vectors, by their position.
pub(super) struct Graph {
    hnsw: Hnsw<'static, f32, Cosine>,
    vectors: Arc<Vectors>,
    /// The further positions of a vector that occurs several times, by its first position.
    copies: HashMap<usize, Vec<usize>>,
    /// Positions that the graph does not reach, in order.
    stragglers: Vec<usize>,
}

impl Graph {
    /// Builds and audits the graph of vectors, until `stop` is set.
    pub(super) fn build(vectors: &Arc<Vectors>, stop: &AtomicBool) -> Result<Self, NoGraph> {
        let build = || Self::build_unguarded(vectors, stop);
        panic::catch_unwind(AssertUnwindSafe(build)).unwrap_or(Err(NoGraph::Unusable))
    }

    fn build_unguarded(vectors: &Arc<Vectors>, stop: &AtomicBool) -> Result<Self, NoGraph> {
        let check_stop = || if stop.load(Ordering::Relaxed) { Err(NoGraph::Stopped) } else { Ok(()) };
        let (firsts, copies) = distinct(vectors);
        let cosine = Cosine(Arc::clone(vectors));
        let hnsw = Hnsw::new(MAX_CONNECTIONS, firsts.len().max(1), MAX_LAYERS, EF_CONSTRUCTION, cosine);
        let mut graph = Self { hnsw, vectors: Arc::clone(vectors), copies, stragglers: Vec::new() };
        for idx in &firsts {
            check_stop()?;
            graph.insert(*idx);
        }
        for idx in firsts {
            check_stop()?;
            let vector = vectors.read().of(idx).to_vec();
            if !graph.nodes(&vector, N_AUDIT, EF_AUDIT).contains(&idx) {
                graph.stragglers.push(idx);
                graph.stragglers.extend(graph.copies.get(&idx).into_iter().flatten());
            }
        }
        graph.stragglers.sort_unstable();
        if graph.stragglers.len() * MIN_VECTORS_PER_STRAGGLER > vectors.len() {
            return Err(NoGraph::Unusable);
        }
        Ok(graph)
    }

    /// Adds a vector. Vectors can be overwritten between two of these calls.
    fn insert(&self, idx: usize) {
        let _locked = self.vectors.read();
        self.hnsw.insert_slice((&Cosine::point(idx), idx));
    }

    /// Returns the positions of about `ef` different vectors near a vector, nearest first; none if the library panicked.
    pub(super) fn nearest(&self, vector: &[f32], ef: usize) -> Option<Vec<usize>> {
        let search = || {
            let nodes = self.nodes(vector, ef, ef);
            nodes
                .into_iter()
                .flat_map(|idx| std::iter::once(idx).chain(self.copies.get(&idx).into_iter().flatten().copied()))
                .collect()
        };
        panic::catch_unwind(AssertUnwindSafe(search)).ok()
    }

    /// Positions that the graph does not reach, which a search compares in addition.
    pub(super) fn stragglers(&self) -> &[usize] {
        &self.stragglers
    }

    pub(super) fn is_straggler(&self, idx: usize) -> bool {
        self.stragglers.binary_search(&idx).is_ok()
    }

    /// Returns the first positions of the nearest vectors.
    fn nodes(&self, vector: &[f32], k: usize, ef: usize) -> Vec<usize> {
        let query = Cosine::query(vector);
        let _locked = self.vectors.read();
        self.hnsw.search(&query, k, ef).into_iter().map(|n| n.d_id).collect()
    }
}

/// Returns the first position of each different vector, in order, and the further positions by the first.
fn distinct(vectors: &Vectors) -> (Vec<usize>, HashMap<usize, Vec<usize>>) {
    let vectors = vectors.read();
    let mut first_of = HashMap::with_capacity(vectors.len());
    let (mut firsts, mut copies) = (Vec::with_capacity(vectors.len()), HashMap::<_, Vec<usize>>::new());
    for idx in 0..vectors.len() {
        match *first_of.entry(Bits(vectors.of(idx))).or_insert(idx) {
            first if first == idx => firsts.push(idx),
            first => copies.entry(first).or_default().push(idx),
        }
    }
    (firsts, copies)
}

/// A vector that equals another if all bits are the same.
struct Bits<'a>(&'a [f32]);

impl Bits<'_> {
    fn bits(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|v| v.to_bits())
    }
}

impl PartialEq for Bits<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bits().eq(other.bits())
    }
}

impl Eq for Bits<'_> {}

impl Hash for Bits<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().for_each(|bits| state.write_u32(bits));
    }
}
