//! The one list of all tables.

/// When a table is compared with the store's tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// Read whole when the store is opened, which fails when anything is lost: nothing works without these records.
    Whole,
    /// Read whole when the store is opened. What is lost or altered is reported, and the rest is served.
    InPart,
    /// Read whole after the store is opened, because that takes long. Whatever differs is reported, and all is served.
    Afterwards,
    /// Too large for that: each value has its own checks, and the doctor reads all of it.
    WhenUsed,
}

/// Generates the enum and everything else that lists all tables.
macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $number:literal, verified $when:ident;)+) => {
        /// The tables. The number is part of the stored key: never reuse one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub(crate) enum Table {
            $($(#[$doc])* $name = $number,)+
        }

        impl Table {
            /// Every table, in the order of an export: chunks before the blobs that need them, and faces before
            /// the requests that name them.
            pub(crate) const ALL: [Self; [$($number),+].len()] = [$(Self::$name),+];

            /// When the table is compared with the tally.
            pub(super) const fn verified(self) -> Verified {
                match self {
                    $(Self::$name => Verified::$when,)+
                }
            }
        }
    };
}

tables! {
    /// Facts of the store itself: `StoreRecord`.
    Meta = 0, verified Whole;
    /// `ModelRecord`.
    Models = 1, verified Whole;
    /// `VersionRecord`.
    Versions = 2, verified InPart;
    /// `AliasRecord`.
    Aliases = 3, verified Whole;
    /// `RunRecord`.
    Runs = 4, verified InPart;
    /// `RunEventRecord`.
    RunEvents = 5, verified InPart;
    /// `CollectionRecord`.
    Collections = 6, verified Whole;
    /// `FaceFacts`, sealed.
    Faces = 7, verified Afterwards;
    /// `FaceIdRecord`.
    FaceIds = 11, verified Afterwards;
    /// `FaceVector`, sealed.
    FaceVectors = 12, verified WhenUsed;
    /// `ErasureRecord`.
    Erasures = 13, verified InPart;
    /// `AnswerRecord`.
    Requests = 8, verified Afterwards;
    /// Raw chunks: digest, chunk index (4 bytes, big endian).
    BlobChunks = 10, verified WhenUsed;
    /// `BlobRecord`.
    Blobs = 9, verified Whole;
}

// The tally indexes tables by number; the last byte is the tally's own key.
const _: () = {
    let mut i = 0;
    while i < Table::ALL.len() {
        assert!((Table::ALL[i] as usize) < Table::ALL.len(), "the numbers of the tables have a gap");
        i += 1;
    }
    assert!(Table::ALL.len() < u8::MAX as usize, "no number is left for the tally's key");
};
