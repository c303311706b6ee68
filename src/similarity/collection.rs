//! A collection in memory: sealed segments with graphs, and a small tail that is scanned.
//!
//! It is a cache of the store. New faces join the tail. In the background, a full tail is sealed and gets its graph,
//! segments of similar size are merged, and segments with many deleted faces are rebuilt. A search never waits for
//! that: it sees either the old segments or the new ones.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::RwLock;

use super::{
    SimilaritySettings,
    segment::{Hit, Segment, TopK},
};

/// Segments of similar size that are merged into one.
const MERGE_FACTOR: usize = 4;

/// A segment is rebuilt when one in this many of its faces is deleted.
const REBUILD_ONE_IN: usize = 4;

/// The place of a face.
#[derive(Clone)]
enum Place {
    Tail(usize),
    Sealed(Arc<Segment>, usize),
}

struct State {
    sealed: Vec<Arc<Segment>>,
    tail: Segment,
    /// By the face's number.
    places: HashMap<u64, Place>,
    /// A segment that will replace others, and the position in it of each face.
    growing: Option<(Arc<Segment>, HashMap<u64, usize>)>,
}

/// Segments that are being replaced by one.
struct Merge<'a> {
    old: &'a [Arc<Segment>],
    segment: Arc<Segment>,
    /// The origin of each face, by its new position.
    origins: Vec<(&'a Arc<Segment>, usize)>,
}

/// A collection's faces.
pub(super) struct LoadedFaces {
    dimensions: usize,
    state: RwLock<State>,
}

impl LoadedFaces {
    pub(super) fn new(dimensions: usize) -> Self {
        let state = State { sealed: Vec::new(), tail: Segment::new(dimensions), places: HashMap::new(), growing: None };
        Self { dimensions, state: RwLock::new(state) }
    }

    pub(super) fn len(&self) -> usize {
        self.state.read().places.len()
    }

    /// Returns true if it has a face, which may be hidden.
    pub(super) fn has(&self, number: u64) -> bool {
        self.state.read().places.contains_key(&number)
    }

    /// The numbers of all faces after one, in order; some may be hidden.
    pub(super) fn numbers_after(&self, after: Option<u64>) -> Vec<u64> {
        let state = self.state.read();
        let mut numbers: Vec<u64> =
            state.places.keys().copied().filter(|n| after.is_none_or(|after| *n > after)).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Adds a face, whose number no other has had; returns true if there is background work now.
    pub(super) fn insert(&self, number: u64, vector: &[f32], settings: &SimilaritySettings) -> bool {
        let mut state = self.state.write();
        let idx = state.tail.push(number, vector);
        state.places.insert(number, Place::Tail(idx));
        if state.tail.len() < settings.seal_at {
            return false;
        }
        let full = Arc::new(std::mem::replace(&mut state.tail, Segment::new(self.dimensions)));
        // Hidden faces too, since they will be forgotten or shown again.
        for idx in full.remaining() {
            if let Some(place) = state.places.get_mut(&full.numbers()[idx]) {
                *place = Place::Sealed(Arc::clone(&full), idx);
            }
        }
        state.sealed.push(full);
        true
    }

    /// Hides a face from every search; returns false if it is absent.
    pub(super) fn hide(&self, number: u64) -> bool {
        self.set_alive(number, false)
    }

    /// Shows a face again after its deletion failed.
    pub(super) fn show(&self, number: u64) {
        self.set_alive(number, true);
    }

    fn set_alive(&self, number: u64, alive: bool) -> bool {
        // The write lock keeps segments from being swapped meanwhile.
        let state = self.state.write();
        let place = state.places.get(&number).cloned();
        place.is_some_and(|place| {
            state.set_alive(&place, alive);
            true
        })
    }

    /// Forgets a hidden face: its vector is overwritten wherever it is in memory.
    pub(super) fn forget(&self, number: u64) {
        let mut state = self.state.write();
        if let Some(place) = state.places.remove(&number) {
            state.set_gone(&place);
        }
        if let Some((growing, positions)) = &state.growing
            && let Some(idx) = positions.get(&number)
        {
            growing.set_gone(*idx);
        }
    }

    /// Overwrites all vectors.
    pub(super) fn wipe(&self) {
        let state = self.state.write();
        state.tail.wipe();
        state.sealed.iter().for_each(|segment| segment.wipe());
        if let Some((growing, _)) = &state.growing {
            growing.wipe();
        }
    }

    /// Returns a face's vector.
    pub(super) fn vector(&self, number: u64) -> Option<Vec<f32>> {
        let state = self.state.read();
        match state.places.get(&number)? {
            Place::Tail(idx) => Some(state.tail.vector(*idx)),
            Place::Sealed(segment, idx) => Some(segment.vector(*idx)),
        }
    }

    /// Returns the best `k` faces, best first, and whether every face was compared; `None` if `is_void` became true
    /// meanwhile.
    pub(super) fn search(
        &self,
        query: &[f32],
        (k, min_score): (usize, Option<f32>),
        exact: bool,
        settings: &SimilaritySettings,
        is_void: &dyn Fn() -> bool,
    ) -> Option<(Vec<Hit>, bool)> {
        let mut best = TopK::new(k, min_score, is_void);
        let (sealed, n_faces) = {
            let state = self.state.read();
            state.tail.scan(query, &mut best);
            (state.sealed.clone(), state.places.len())
        };
        let mut all_compared = true;
        for segment in sealed {
            if is_void() {
                return None;
            }
            if exact || n_faces <= settings.exact_up_to {
                segment.scan(query, &mut best);
            } else {
                all_compared &= segment.search(query, settings.ef_search, &mut best);
            }
        }
        (!is_void()).then(|| (best.into_sorted(), all_compared))
    }

    /// Does one piece of background work, which ends early once `stop` is set; returns false if there is none.
    pub(super) fn maintain(&self, settings: &SimilaritySettings, stop: &AtomicBool) -> bool {
        let (sealed, n_faces) = {
            let state = self.state.read();
            (state.sealed.clone(), state.places.len())
        };
        // A collection that is always scanned needs no graphs.
        let needs_graphs = n_faces > settings.exact_up_to;
        // Faces that are hidden but not gone would stay hidden in a new segment: rebuilding it would gain nothing.
        let is_worn = |s: &&Arc<Segment>| s.n_gone() > 0 && s.n_gone() * REBUILD_ONE_IN >= s.len();
        if let Some(worn) = sealed.iter().find(is_worn) {
            self.replace(std::slice::from_ref(worn), needs_graphs, stop);
            return true;
        }
        let mut tiers: HashMap<u32, Vec<Arc<Segment>>> = HashMap::new();
        for segment in &sealed {
            let tier = (segment.len() / settings.seal_at).max(1).ilog(MERGE_FACTOR);
            tiers.entry(tier).or_default().push(Arc::clone(segment));
        }
        if let Some(alike) = tiers.values().find(|alike| alike.len() >= MERGE_FACTOR) {
            self.replace(&alike[..MERGE_FACTOR], needs_graphs, stop);
            return true;
        }
        if needs_graphs && let Some(bare) = sealed.iter().find(|s| !s.graph_tried()) {
            bare.build_graph(stop);
            return true;
        }
        false
    }

    /// Replaces old segments by one new one with their remaining faces, unless `stop` is set before it is built.
    fn replace(&self, old: &[Arc<Segment>], with_graph: bool, stop: &AtomicBool) {
        let merge = self.begin_merge(old);
        if with_graph && merge.segment.len() > 0 {
            merge.segment.build_graph(stop);
        }
        if stop.load(Ordering::Relaxed) {
            self.state.write().growing = None;
        } else {
            self.finish_merge(merge);
        }
    }

    /// Copies the remaining faces of segments into a new one. Whoever forgets a face from then on overwrites it there, too.
    fn begin_merge<'a>(&self, old: &'a [Arc<Segment>]) -> Merge<'a> {
        let mut merged = Segment::new(self.dimensions);
        let mut origins = Vec::new();
        for segment in old {
            for idx in segment.remaining() {
                merged.push(segment.numbers()[idx], &segment.vector(idx));
                origins.push((segment, idx));
            }
        }
        let merged = Arc::new(merged);
        let positions = merged.numbers().iter().enumerate().map(|(idx, number)| (*number, idx)).collect();
        let mut state = self.state.write();
        state.growing = Some((Arc::clone(&merged), positions));
        for (idx, (segment, old_idx)) in origins.iter().enumerate() {
            if segment.is_gone(*old_idx) {
                merged.set_gone(idx);
            }
        }
        Merge { old, segment: merged, origins }
    }

    /// Puts the new segment in the place of the old ones.
    fn finish_merge(&self, Merge { old, segment: merged, origins }: Merge<'_>) {
        let mut state = self.state.write();
        state.growing = None;
        state.sealed.retain(|s| !old.iter().any(|o| Arc::ptr_eq(s, o)));
        if merged.len() == 0 {
            return;
        }
        for ((idx, (segment, old_idx)), number) in origins.iter().enumerate().zip(merged.numbers()) {
            // Faces hidden or deleted while the graph was built stay so in the new segment.
            merged.set_alive(idx, segment.is_alive(*old_idx));
            let place = state.places.get_mut(number);
            match place.filter(|place| matches!(place, Place::Sealed(s, i) if Arc::ptr_eq(s, segment) && i == old_idx))
            {
                Some(place) => *place = Place::Sealed(Arc::clone(&merged), idx),
                None => merged.set_gone(idx),
            }
        }
        state.sealed.push(merged);
    }
}

impl State {
    fn set_alive(&self, place: &Place, alive: bool) {
        match place {
            Place::Tail(idx) => self.tail.set_alive(*idx, alive),
            Place::Sealed(segment, idx) => segment.set_alive(*idx, alive),
        }
    }

    fn set_gone(&self, place: &Place) {
        match place {
            Place::Tail(idx) => self.tail.set_gone(*idx),
            Place::Sealed(segment, idx) => segment.set_gone(*idx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> SimilaritySettings {
        SimilaritySettings { seal_at: 4, exact_up_to: 1, ..SimilaritySettings::default() }
    }

    fn filled(n: usize) -> LoadedFaces {
        let faces = LoadedFaces::new(2);
        for i in 0..n {
            faces.insert(i as u64, &[1.0, i as f32 / 100.0], &settings());
        }
        faces
    }

    fn found(faces: &LoadedFaces) -> Vec<u64> {
        let (hits, _) = faces.search(&[1.0, 0.0], (100, None), true, &settings(), &|| false).unwrap();
        let mut numbers: Vec<u64> = hits.into_iter().map(|hit| hit.number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn a_face_hidden_while_the_tail_is_sealed_is_forgotten_alone() {
        let faces = filled(3);
        assert!(faces.hide(2));
        // The fourth seals the tail, the fifth begins the next.
        faces.insert(3, &[1.0, 0.5], &settings());
        faces.insert(4, &[1.0, 0.6], &settings());
        faces.forget(2);
        assert_eq!(found(&faces), [0, 1, 3, 4]);
        assert_eq!(faces.len(), 4);
    }

    #[test]
    fn deletions_wear_a_segment_only_once_they_are_many() {
        let faces = filled(4);
        while faces.maintain(&settings(), &AtomicBool::new(false)) {}
        // Hidden, but not gone: a rebuilt segment would hold it as well.
        faces.hide(1);
        assert!(!faces.maintain(&settings(), &AtomicBool::new(false)));
        faces.forget(1);
        assert!(faces.maintain(&settings(), &AtomicBool::new(false)));
        assert_eq!(faces.state.read().sealed.iter().map(|s| s.len()).collect::<Vec<_>>(), [3]);
        assert_eq!(found(&faces), [0, 2, 3]);
    }

    #[test]
    fn a_search_that_nobody_waits_for_ends() {
        let faces = filled(16);
        let n_asked = std::cell::Cell::new(0);
        let is_void = || n_asked.replace(n_asked.get() + 1) >= 2;
        assert!(faces.search(&[1.0, 0.0], (9, None), true, &settings(), &is_void).is_none());
        assert!(n_asked.get() <= 4, "it went on for {} segments", n_asked.get());
    }

    #[test]
    fn work_that_is_stopped_changes_nothing() {
        let faces = filled(16);
        assert!(faces.maintain(&settings(), &AtomicBool::new(true)));
        let state = faces.state.read();
        assert_eq!(state.sealed.iter().map(|s| (s.len(), s.graph_tried())).collect::<Vec<_>>(), [(4, false); 4]);
    }

    #[test]
    fn a_collection_that_is_always_scanned_gets_no_graphs() {
        let faces = filled(40);
        let scanned = SimilaritySettings { exact_up_to: 100, ..settings() };
        while faces.maintain(&scanned, &AtomicBool::new(false)) {}
        assert!(faces.state.read().sealed.iter().all(|segment| !segment.graph_tried()));
        while faces.maintain(&settings(), &AtomicBool::new(false)) {}
        assert!(faces.state.read().sealed.iter().all(|segment| segment.graph_tried()));
    }

    #[test]
    fn a_face_hidden_while_segments_are_merged_can_be_shown_again() {
        let faces = filled(16);
        faces.hide(5);
        while faces.maintain(&settings(), &AtomicBool::new(false)) {}
        assert!(!found(&faces).contains(&5));
        faces.show(5);
        assert_eq!(found(&faces).len(), 16);
    }

    #[test]
    fn a_forgotten_vector_is_overwritten_wherever_it_is() {
        let faces = filled(18);
        let old: Vec<_> = faces.state.read().sealed.clone();
        // One is forgotten before a merge begins, the others while it is not finished.
        faces.hide(2);
        faces.forget(2);
        let merge = faces.begin_merge(&old[..2]);
        let merged = Arc::clone(&merge.segment);
        for number in [1, 9, 17] {
            faces.hide(number);
            faces.forget(number);
        }
        assert_eq!((old[0].vector(1), old[2].vector(1)), (vec![0.0; 2], vec![0.0; 2]));
        assert_eq!(faces.state.read().tail.vector(1), [0.0; 2]);
        assert_eq!((merged.numbers()[1], merged.vector(1)), (1, vec![0.0; 2]));
        assert!(!merged.numbers().contains(&2) && merged.vector(0) != [0.0; 2]);
        faces.finish_merge(merge);
        while faces.maintain(&settings(), &AtomicBool::new(false)) {}
        assert_eq!(found(&faces).len(), 14);
        let last: Vec<_> = faces.state.read().sealed.clone();
        faces.wipe();
        assert!(last.iter().all(|segment| segment.vector(0) == [0.0; 2]));
    }
}
