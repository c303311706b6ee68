//! What a photo's reader noticed and read it all the same.

/// What is odd about a photo that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhotoNote {
    /// The file ends without its end mark, or something else stands before it; every pixel is there.
    EndMissing,
    /// The file's header promises a chunk that is not there: metadata, a profile, an animation.
    ChunkMissing,
    /// What the file says of its colours could not be followed, so they may be off.
    ColoursUnsure,
}
