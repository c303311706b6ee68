//! The vectors of a segment, side by side. An erased one is overwritten at once, while others are read.

use parking_lot::{RwLock, RwLockReadGuard};
use zeroize::Zeroize;

/// Vectors of one length, by position.
pub(super) struct Vectors {
    dimensions: usize,
    values: RwLock<Vec<f32>>,
}

/// Read access, during which no vector is overwritten.
pub(super) struct Locked<T> {
    dimensions: usize,
    values: T,
}

impl Vectors {
    pub(super) fn new(dimensions: usize) -> Self {
        Self { dimensions, values: RwLock::default() }
    }

    pub(super) fn push(&self, vector: &[f32]) {
        debug_assert_eq!(vector.len(), self.dimensions);
        let mut values = self.values.write();
        if values.len() + vector.len() > values.capacity() {
            // A block that grows may move and leave its contents behind.
            let mut larger = Vec::with_capacity(2 * values.capacity().max(vector.len()));
            larger.extend_from_slice(&values);
            values.zeroize();
            *values = larger;
        }
        values.extend_from_slice(vector);
    }

    pub(super) fn len(&self) -> usize {
        self.values.read().len() / self.dimensions
    }

    /// Reads. A thread must not call this twice at once, because a writer may wait in between.
    pub(super) fn read(&self) -> Locked<RwLockReadGuard<'_, Vec<f32>>> {
        Locked { dimensions: self.dimensions, values: self.values.read() }
    }

    /// Reads under a lock that was taken before.
    ///
    /// # Safety
    /// What [`Vectors::read`] returned must exist until the result is dropped.
    pub(super) unsafe fn read_locked(&self) -> Locked<&Vec<f32>> {
        // SAFETY: the caller holds a lock, so nobody writes.
        Locked { dimensions: self.dimensions, values: unsafe { &*self.values.data_ptr() } }
    }

    /// Overwrites a vector with zeros.
    pub(super) fn wipe(&self, idx: usize) {
        let at = idx * self.dimensions;
        self.values.write()[at..at + self.dimensions].fill(0.0);
    }

    /// Overwrites all vectors with zeros.
    pub(super) fn wipe_all(&self) {
        self.values.write().iter_mut().for_each(|value| value.zeroize());
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        // The allocator overwrites small blocks only.
        self.values.get_mut().zeroize();
    }
}

impl<T: std::ops::Deref<Target = Vec<f32>>> Locked<T> {
    pub(super) fn len(&self) -> usize {
        self.values.len() / self.dimensions
    }

    pub(super) fn of(&self, idx: usize) -> &[f32] {
        &self.values[idx * self.dimensions..(idx + 1) * self.dimensions]
    }
}
