//! Format 1: gives the store its identity. Its tables need no migration.

use super::{Batch, Migration};

pub(super) const MIGRATION: Migration = Migration { format: 1, name: "0001 initial", writes: |_| Ok(Batch::default()) };
