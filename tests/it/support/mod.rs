//! What whole-system tests share.

pub(crate) mod faces;
