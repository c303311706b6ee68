//! The call that a use case serves.

use std::time::{Duration, Instant};

use crate::serving::Priority;

/// Who calls. What a caller may do, and for which tenant, belongs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The caller's name, as the edge established it.
    pub id: String,
}

impl Caller {
    /// A caller that showed no credentials.
    #[must_use]
    pub(crate) fn anonymous() -> Self {
        Self { id: "anonymous".to_owned() }
    }
}

/// A call: who calls, which call it is, until when it must be answered and how urgent it is. Every use case takes one
/// first, also one that only reads.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Who calls.
    pub caller: Caller,
    /// Names this call in logs; the caller's `x-request-id`, or made at the edge.
    pub call_id: String,
    /// When the call arrived.
    pub arrived: Instant,
    /// When the answer is worthless.
    pub deadline: Option<Instant>,
    /// How long one item of a stream may take; the stream's own deadline holds too.
    pub item_timeout: Duration,
    /// How urgent its work on a device is.
    pub priority: Priority,
}

impl Call {
    /// A call without a deadline.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            caller: Caller::anonymous(),
            call_id: "test".to_owned(),
            arrived: Instant::now(),
            deadline: None,
            item_timeout: Duration::from_secs(60),
            priority: Priority::default(),
        }
    }

    /// The same call, for an item of its stream that arrives now.
    #[must_use]
    pub(crate) fn item(&self) -> Self {
        let arrived = Instant::now();
        let due = arrived + self.item_timeout;
        Self { arrived, deadline: Some(self.deadline.map_or(due, |deadline| deadline.min(due))), ..self.clone() }
    }

    /// Time left, or `None` without a deadline; zero when it has passed.
    #[must_use]
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|d| d.saturating_duration_since(Instant::now()))
    }
}
