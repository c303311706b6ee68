//! Format 1: the store gets its identity. The tables need no making.

use super::{Batch, Migration};

pub(super) const MIGRATION: Migration = Migration { format: 1, name: "0001 initial", writes: |_| Ok(Batch::default()) };
