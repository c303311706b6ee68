//! What all layers' errors have in common: who must act on them. Also reads the message of a caught panic.
//!
//! Each layer has its own error enum (`StoreError`, `ImageError`, …). Logs and transports classify them by [`Kind`];
//! `grpc::status` maps them to gRPC codes and reasons.

use std::any::Any;

/// Who must act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The caller: the request is wrong.
    Invalid,
    /// The caller: the named thing does not exist.
    NotFound,
    /// The caller: the state has changed; read it again.
    Conflict,
    /// The caller, later: the server is at a limit.
    Overloaded,
    /// Nobody: the call was cancelled or its deadline passed.
    Cancelled,
    /// An operator: stored data is damaged.
    Corrupt,
    /// An engineer: it is a bug.
    Internal,
}

/// Returns the message of a caught panic, if it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
}
