//! Faces that are searched together: a block of vectors, a flag for each deleted one, and a graph once built.

use std::{
    collections::BinaryHeap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    embedding::{Score, dot},
    graph::{Graph, NoGraph},
    vectors::Vectors,
};

/// When a search keeps one in this many of a segment's faces as candidates, it compares with so many others that
/// scanning all of them, in memory order, is no slower.
const SCAN_ONE_IN: usize = 8;

/// The score and number of a face that a search found. A number is never another face's, so both belong together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hit {
    pub(super) score: f32,
    pub(super) number: u64,
}

impl Eq for Hit {}

impl Ord for Hit {
    /// The worst is the greatest, so a heap drops it first; ties are ordered by number, so answers are reproducible.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then_with(|| self.number.cmp(&other.number))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Faces that a scan compares between two questions whether to stop.
const SCAN_PIECE: usize = 4_096;

/// Keeps the best `k` of the hits shown to it.
pub(super) struct TopK<'a> {
    k: usize,
    min_score: f32,
    heap: BinaryHeap<Hit>,
    /// Returns true once nobody waits for the result any more.
    is_void: &'a dyn Fn() -> bool,
}

impl<'a> TopK<'a> {
    pub(super) fn new(k: usize, min_score: Option<f32>, is_void: &'a dyn Fn() -> bool) -> Self {
        Self { k, min_score: min_score.unwrap_or(f32::NEG_INFINITY), heap: BinaryHeap::new(), is_void }
    }

    fn show(&mut self, score: f32, number: u64) {
        let score = score.clamp(-1.0, 1.0);
        if score < self.min_score {
            return;
        }
        if self.heap.len() < self.k {
            self.heap.push(Hit { score, number });
        } else if let Some(mut worst) = self.heap.peek_mut() {
            let hit = Hit { score, number };
            if hit < *worst {
                *worst = hit;
            }
        }
    }

    /// Returns the hits, best first.
    pub(super) fn into_sorted(self) -> Vec<Hit> {
        self.heap.into_sorted_vec()
    }
}

/// A block of faces; faces are added only while it is a collection's tail.
pub(super) struct Segment {
    numbers: Vec<u64>,
    vectors: Arc<Vectors>,
    alive: Vec<AtomicBool>,
    n_dead: AtomicUsize,
    /// By position: true once the face was deleted and its vector overwritten.
    gone: Vec<AtomicBool>,
    n_gone: AtomicUsize,
    /// `Some(None)` when there can be none.
    graph: OnceLock<Option<Graph>>,
}

impl Segment {
    pub(super) fn new(dimensions: usize) -> Self {
        Self {
            numbers: Vec::new(),
            vectors: Arc::new(Vectors::new(dimensions)),
            alive: Vec::new(),
            n_dead: AtomicUsize::new(0),
            gone: Vec::new(),
            n_gone: AtomicUsize::new(0),
            graph: OnceLock::new(),
        }
    }

    /// Adds a face and returns its position.
    pub(super) fn push(&mut self, number: u64, vector: &[f32]) -> usize {
        self.numbers.push(number);
        self.vectors.push(vector);
        self.alive.push(AtomicBool::new(true));
        self.gone.push(AtomicBool::new(false));
        self.numbers.len() - 1
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn n_dead(&self) -> usize {
        self.n_dead.load(Ordering::Relaxed)
    }

    pub(super) fn is_alive(&self, idx: usize) -> bool {
        self.alive[idx].load(Ordering::Acquire)
    }

    /// Marks a face as deleted, or as alive again when its deletion failed.
    pub(super) fn set_alive(&self, idx: usize, alive: bool) {
        let _ = match (self.alive[idx].swap(alive, Ordering::AcqRel), alive) {
            (true, false) => self.n_dead.fetch_add(1, Ordering::Relaxed),
            (false, true) => self.n_dead.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Marks a face as deleted for good, and overwrites its vector.
    pub(super) fn set_gone(&self, idx: usize) {
        self.set_alive(idx, false);
        self.vectors.wipe(idx);
        if !self.gone[idx].swap(true, Ordering::AcqRel) {
            self.n_gone.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Overwrites all vectors.
    pub(super) fn wipe(&self) {
        self.vectors.wipe_all();
    }

    pub(super) fn is_gone(&self, idx: usize) -> bool {
        self.gone[idx].load(Ordering::Acquire)
    }

    pub(super) fn n_gone(&self) -> usize {
        self.n_gone.load(Ordering::Relaxed)
    }

    /// The positions of the faces that are not gone; hidden ones may be shown again.
    pub(super) fn remaining(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|idx| !self.is_gone(*idx))
    }

    /// Returns a copy of a face's vector.
    pub(super) fn vector(&self, idx: usize) -> Vec<f32> {
        self.vectors.read().of(idx).to_vec()
    }

    /// The number of every face, by position.
    pub(super) fn numbers(&self) -> &[u64] {
        &self.numbers
    }

    /// Returns true if building the graph was tried.
    pub(super) fn graph_tried(&self) -> bool {
        self.graph.get().is_some()
    }

    /// Builds the graph, which must not exist yet, until `stop` is set. Without a graph the segment is scanned, which is
    /// only slower.
    pub(super) fn build_graph(&self, stop: &AtomicBool) {
        let graph = match Graph::build(&self.vectors, stop) {
            Ok(graph) => Some(graph),
            Err(NoGraph::Stopped) => return,
            Err(NoGraph::Unusable) => {
                tracing::error!(faces = self.len(), "the graph library failed; the segment is scanned exactly");
                None
            }
        };
        let _ = self.graph.set(graph);
    }

    /// Compares with every face, unless the result becomes void.
    pub(super) fn scan(&self, query: &[f32], best: &mut TopK<'_>) {
        for start in (0..self.len()).step_by(SCAN_PIECE) {
            if (best.is_void)() {
                return;
            }
            let piece = start..self.len().min(start + SCAN_PIECE);
            let vectors = self.vectors.read();
            for idx in piece {
                if self.is_alive(idx) {
                    best.show(dot(query, vectors.of(idx)), self.numbers[idx]);
                }
            }
        }
    }

    /// Searches the graph; returns true if every face was compared instead.
    ///
    /// Only living faces reached by the graph count as found. If they are too few, deleted faces have taken their
    /// places, and the search is widened. Faces that the graph does not reach are compared in addition.
    pub(super) fn search(&self, query: &[f32], ef: usize, best: &mut TopK<'_>) -> bool {
        let Some(graph) = self.graph.get().and_then(Option::as_ref) else {
            self.scan(query, best);
            return true;
        };
        let n_stragglers = graph.stragglers().iter().filter(|idx| self.is_alive(**idx)).count();
        let n_expected = best.k.min((self.len() - self.n_dead()).saturating_sub(n_stragglers));
        // Deleted faces still take places among the nearest.
        let wanted = best.k + self.n_dead().min(best.k);
        let mut ef = ef.max(2 * wanted);
        while ef * SCAN_ONE_IN < self.len() {
            let Some(nearest) = graph.nearest(query, ef) else { break };
            // Stragglers are compared separately, whether the graph reached them this time or not.
            let counts = |idx: &usize| self.is_alive(*idx) && !graph.is_straggler(*idx);
            let living: Vec<usize> = nearest.into_iter().filter(counts).collect();
            if living.len() >= n_expected {
                let vectors = self.vectors.read();
                for idx in living.iter().chain(graph.stragglers()).copied().filter(|idx| self.is_alive(*idx)) {
                    best.show(Score::of(query, vectors.of(idx)).value(), self.numbers[idx]);
                }
                return false;
            }
            ef *= 2;
        }
        self.scan(query, best);
        true
    }
}
