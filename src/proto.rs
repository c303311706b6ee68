//! The generated messages and services: the public contract ([`v1`]), the stored records ([`store`]), the messages
//! between a server and its training process ([`worker`]), and long-running operations ([`longrunning`]).
//!
//! Holds no logic. The documented sources are under `proto/`.

pub use google::longrunning;
pub use visage::{store::v1 as store, v1, worker::v1 as worker};

/// The packages of `google.*`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod google {
    /// `google.longrunning`.
    pub mod longrunning {
        tonic::include_proto!("google.longrunning");
    }
}

/// The packages of `visage.*`, nested as their generated paths expect.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod visage {
    /// The public contract.
    pub mod v1 {
        tonic::include_proto!("visage.v1");
    }
    /// The stored records.
    pub mod store {
        /// Format version 1.
        pub mod v1 {
            tonic::include_proto!("visage.store.v1");
        }
    }
    /// The worker's pipe.
    pub mod worker {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("visage.worker.v1");
        }
    }
}

impl v1::Head {
    /// Makes a head that predicts a number; `unit` may be empty.
    #[must_use]
    pub fn regression(name: &str, unit: &str) -> Self {
        let kind = v1::head::Kind::Regression(v1::RegressionHead { unit: unit.to_owned() });
        Self { name: name.to_owned(), kind: Some(kind), ..Self::default() }
    }

    /// Makes a head that predicts one of the labels; if there are none, training takes them from the data.
    #[must_use]
    pub fn classification(name: &str, labels: Vec<String>) -> Self {
        let kind = v1::head::Kind::Classification(v1::ClassificationHead { labels });
        Self { name: name.to_owned(), kind: Some(kind), ..Self::default() }
    }
}

/// The descriptors of the public contract, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/visage_v1.bin"));

/// `google.rpc`: the wire form of an error.
pub mod rpc {
    pub use tonic_types::pb::{ErrorInfo, Status};
}
