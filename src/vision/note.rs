//! Defects of a photo that do not prevent reading it.

/// A defect of a photo that was read nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhotoNote {
    /// The end mark is missing or preceded by other bytes; every pixel is there.
    EndMissing,
    /// The file's header announces a chunk that is missing: metadata, a profile, an animation.
    ChunkMissing,
    /// The file's colour information could not be applied, so colours may be off.
    ColoursUnsure,
}
