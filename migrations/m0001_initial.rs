//! Format 1: a store has an identity. A store without one is empty, so there is nothing to change.

use super::{Migration, Unchanged};

pub(super) const MIGRATION: Migration = Migration { format: 1, name: "0001 initial", changes: || Box::new(Unchanged) };
