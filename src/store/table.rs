//! The one list of all tables.

/// When a table is compared with the store's tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// Read whole when the store is opened.
    AtOpen,
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
            /// Every table, in the order of an export: chunks before the blobs that need them.
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
    Meta = 0, verified AtOpen;
    /// `ModelRecord`.
    Models = 1, verified AtOpen;
    /// `VersionRecord`.
    Versions = 2, verified AtOpen;
    /// `AliasRecord`.
    Aliases = 3, verified AtOpen;
    /// `RunRecord`.
    Runs = 4, verified AtOpen;
    /// `RunEventRecord`.
    RunEvents = 5, verified AtOpen;
    /// `CollectionRecord`.
    Collections = 6, verified AtOpen;
    /// `FaceRecord`.
    Faces = 7, verified AtOpen;
    /// `RequestRecord`.
    Requests = 8, verified AtOpen;
    /// Raw chunks: digest, chunk index (4 bytes, big endian).
    BlobChunks = 10, verified WhenUsed;
    /// `BlobRecord`.
    Blobs = 9, verified AtOpen;
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
