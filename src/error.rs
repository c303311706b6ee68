//! What every layer's error can say of itself: who must act; and the message of a caught panic.
//!
//! Each layer has an error enum of its own (`StoreError`, `ImageError`, …). [`Kind`] is the common axis by which logs
//! and transports sort them; the table from errors to gRPC codes and reasons is `grpc::status`.

use std::any::Any;

/// Who must act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The caller: the request is wrong.
    Invalid,
    /// The caller: what was named does not exist.
    NotFound,
    /// The caller: the world has moved, look again.
    Conflict,
    /// The caller, later: there is no room now.
    Overloaded,
    /// Nobody: the caller went away or ran out of time.
    Cancelled,
    /// An operator: stored data is damaged.
    Corrupt,
    /// An engineer: a defect.
    Internal,
}

/// The message of a caught panic, if it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
}
