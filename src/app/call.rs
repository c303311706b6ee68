//! The call that a use case serves.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::serving::Priority;

/// The caller. Permissions and tenant will belong here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The caller's name, set by the edge.
    pub id: String,
    /// The connection of the call. It tells callers without credentials apart when they compete for cores.
    pub connection: Option<SocketAddr>,
}

impl Caller {
    /// Returns the caller of a call without credentials.
    #[must_use]
    pub(crate) fn anonymous() -> Self {
        Self { id: "anonymous".to_owned(), connection: None }
    }
}

/// A call: its caller, id, deadline and priority. It is the first parameter of every use case, even one that only
/// reads.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The caller.
    pub caller: Caller,
    /// The call's id in logs: the caller's `x-request-id`, or one made by the edge.
    pub call_id: String,
    /// When the call arrived.
    pub arrived: Instant,
    /// The time after which the caller no longer wants the answer.
    pub deadline: Option<Instant>,
    /// The time limit of one item of a stream; the stream's own deadline also holds.
    pub item_timeout: Duration,
    /// The priority of its work on the device.
    pub priority: Priority,
}

impl Call {
    /// Makes a call of this process itself, without a deadline.
    pub(crate) fn local() -> Self {
        Self {
            caller: Caller::anonymous(),
            call_id: "local".to_owned(),
            arrived: Instant::now(),
            deadline: None,
            item_timeout: Duration::from_secs(60),
            priority: Priority::default(),
        }
    }

    /// Returns the call for an item of its stream that arrives now.
    #[must_use]
    pub(crate) fn item(&self) -> Self {
        let arrived = Instant::now();
        let due = arrived + self.item_timeout;
        Self { arrived, deadline: Some(self.deadline.map_or(due, |deadline| deadline.min(due))), ..self.clone() }
    }

    /// Returns the time left: `None` without a deadline, zero after it.
    #[must_use]
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|d| d.saturating_duration_since(Instant::now()))
    }
}
