//! Pins keep versions loaded.
//!
//! A version stays loaded while a [`Pin`] on it exists. Its holder is an alias, a collection, a version that depends on
//! it, or a call in progress. A call that names an alias holds the alias's own pin, so its version cannot be unloaded
//! meanwhile. After the last lasting holder (any but a call) and all calls have released a version, it is reported as
//! free.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc::UnboundedSender, watch};

use crate::names::{AliasName, VersionName};

/// The holder of a pin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    /// An alias that points at the version.
    Alias(AliasName),
    /// A collection that compares in a space of the version.
    Collection(String),
    /// A loaded version that depends on it.
    Version(VersionName),
    /// A call in progress.
    Call,
}

impl Holder {
    fn is_lasting(&self) -> bool {
        *self != Self::Call
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => write!(f, "the alias {alias}"),
            Self::Collection(id) => write!(f, "collections/{id}"),
            Self::Version(version) => version.fmt(f),
            Self::Call => f.write_str("a call"),
        }
    }
}

/// Keeps a version loaded until the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Pin(Arc<Held>);

struct Held {
    pins: Arc<Pins>,
    version: VersionName,
    holder: Holder,
}

impl Pin {
    /// Returns the pinned version.
    pub(crate) fn version(&self) -> &VersionName {
        &self.0.version
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pins.release(&self.version, &self.holder);
    }
}

/// All pins of a server.
pub(crate) struct Pins {
    slots: Mutex<HashMap<VersionName, Slot>>,
    /// Receives versions without holders, if a lasting holder was among them.
    free: UnboundedSender<VersionName>,
    /// Notified when a lasting holder takes or releases a version.
    changes: watch::Sender<()>,
}

/// A version that is held or being unloaded.
#[derive(Default)]
struct Slot {
    holders: Vec<Holder>,
    /// Present during an unload; notified when a holder releases the version and when the unload ends.
    closing: Option<Arc<Notify>>,
    /// True if the last lasting holder has released the version.
    is_released: bool,
}

/// An unload in progress: no call gets a pin on the version until this is dropped.
pub(crate) struct Closing {
    pins: Arc<Pins>,
    version: VersionName,
    changed: Arc<Notify>,
}

impl Pins {
    pub(crate) fn new(free: UnboundedSender<VersionName>, changes: watch::Sender<()>) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::default(), free, changes })
    }

    /// Pins a version, after any unload in progress.
    pub(super) async fn hold(self: &Arc<Self>, version: &VersionName, holder: Holder) -> Pin {
        loop {
            let closing = {
                let mut slots = self.slots.lock();
                let slot = slots.entry(version.clone()).or_default();
                match &slot.closing {
                    None => {
                        slot.holders.push(holder.clone());
                        drop(slots);
                        return self.pin(version, holder);
                    }
                    Some(closing) => Arc::clone(closing).notified_owned(),
                }
            };
            closing.await;
        }
    }

    /// Pins a version without waiting. The caller ensures that no unload is in progress.
    pub(crate) fn hold_now(self: &Arc<Self>, version: &VersionName, holder: Holder) -> Pin {
        self.slots.lock().entry(version.clone()).or_default().holders.push(holder.clone());
        self.pin(version, holder)
    }

    fn pin(self: &Arc<Self>, version: &VersionName, holder: Holder) -> Pin {
        self.changed(&holder);
        Pin(Arc::new(Held { pins: Arc::clone(self), version: version.clone(), holder }))
    }

    fn changed(&self, holder: &Holder) {
        if holder.is_lasting() {
            self.changes.send_replace(());
        }
    }

    fn release(&self, version: &VersionName, holder: &Holder) {
        self.remove(version, holder);
        self.changed(holder);
    }

    fn remove(&self, version: &VersionName, holder: &Holder) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(version) else { return };
        if let Some(at) = slot.holders.iter().position(|held| held == holder) {
            slot.holders.swap_remove(at);
        }
        slot.is_released |= holder.is_lasting() && !slot.holders.iter().any(Holder::is_lasting);
        if let Some(closing) = &slot.closing {
            closing.notify_waiters();
        } else if slot.holders.is_empty() {
            let is_released = slot.is_released;
            slots.remove(version);
            if is_released {
                // When the server stops, nobody receives, and everything is unloaded anyway.
                drop(self.free.send(version.clone()));
            }
        }
    }

    /// Begins to unload a version.
    ///
    /// # Errors
    /// Its first lasting holder, if it has any.
    pub(crate) fn close(self: &Arc<Self>, version: &VersionName) -> Result<Closing, Holder> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(version.clone()).or_default();
        match slot.holders.iter().filter(|holder| holder.is_lasting()).min() {
            Some(holder) => Err(holder.clone()),
            None => {
                let changed = Arc::clone(slot.closing.get_or_insert_default());
                Ok(Closing { pins: Arc::clone(self), version: version.clone(), changed })
            }
        }
    }

    /// Returns the versions with a lasting holder.
    pub(crate) fn needed(&self) -> Vec<VersionName> {
        let slots = self.slots.lock();
        let needed = slots.iter().filter(|(_, slot)| slot.holders.iter().any(Holder::is_lasting));
        needed.map(|(version, _)| version.clone()).collect()
    }

    /// Returns the versions that collections compare with.
    pub(crate) fn compared(&self) -> Vec<VersionName> {
        let slots = self.slots.lock();
        let is_compared = |slot: &Slot| slot.holders.iter().any(|holder| matches!(holder, Holder::Collection(_)));
        slots.iter().filter(|(_, slot)| is_compared(slot)).map(|(version, _)| version.clone()).collect()
    }

    /// Returns true if a version has any holder.
    pub(crate) fn is_held(&self, version: &VersionName) -> bool {
        self.slots.lock().get(version).is_some_and(|slot| !slot.holders.is_empty())
    }
}

impl Closing {
    /// Waits until no call holds the version.
    pub(super) async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.pins.is_held(&self.version) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let mut slots = self.pins.slots.lock();
        if let Some(slot) = slots.get_mut(&self.version) {
            slot.closing = None;
            if slot.holders.is_empty() {
                slots.remove(&self.version);
            }
        }
        drop(slots);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::mpsc;

    use super::*;

    fn version() -> VersionName {
        VersionName::parse("version", "models/m/versions/1").unwrap()
    }

    fn alias() -> Holder {
        Holder::Alias(AliasName::champion())
    }

    #[tokio::test]
    async fn a_version_is_free_when_its_last_lasting_holder_and_all_calls_have_let_go() {
        let (free, mut freed) = mpsc::unbounded_channel();
        let pins = Pins::new(free, watch::Sender::new(()));
        let lasting = pins.hold_now(&version(), alias());
        let of_call = lasting.clone();
        let named = pins.hold(&version(), Holder::Call).await;
        drop(lasting);
        assert!(freed.try_recv().is_err(), "a call holds the alias's pin");
        drop(of_call);
        assert!(freed.try_recv().is_err(), "a call named it");
        drop(named);
        assert_eq!(freed.try_recv().unwrap(), version());
        drop(pins.hold(&version(), Holder::Call).await);
        assert!(freed.try_recv().is_err(), "nobody needed it for longer");
        assert!(pins.slots.lock().is_empty());
    }

    #[tokio::test]
    async fn an_unload_waits_for_calls_and_calls_wait_for_an_unload() {
        let pins = Pins::new(mpsc::unbounded_channel().0, watch::Sender::new(()));
        let first = pins.hold(&version(), Holder::Call).await;
        let closing = pins.close(&version()).unwrap();
        assert!(closing.drained().now_or_never().is_none());
        let name = version();
        let mut second = Box::pin(pins.hold(&name, Holder::Call));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        closing.drained().await;
        assert!((&mut second).now_or_never().is_none());
        drop(closing);
        assert_eq!(*second.await.version(), version());
        assert!(pins.slots.lock().is_empty());
    }

    #[tokio::test]
    async fn a_version_in_use_is_not_closed_and_its_holder_is_named() {
        let pins = Pins::new(mpsc::unbounded_channel().0, watch::Sender::new(()));
        let by_version = pins.hold_now(&version(), Holder::Version(version()));
        let by_alias = pins.hold_now(&version(), alias());
        assert_eq!(pins.close(&version()).err(), Some(alias()));
        assert_eq!(pins.needed(), [version()]);
        drop(by_alias);
        assert_eq!(pins.close(&version()).err().unwrap().to_string(), "models/m/versions/1");
        drop(by_version);
        assert!(pins.close(&version()).is_ok());
        assert!(pins.needed().is_empty());
    }
    #[tokio::test]
    async fn changes_of_lasting_holders_are_published() {
        let changes = watch::Sender::new(());
        let mut seen = changes.subscribe();
        let mut is_new = || {
            let is_new = seen.has_changed().unwrap();
            seen.mark_unchanged();
            is_new
        };
        let pins = Pins::new(mpsc::unbounded_channel().0, changes);
        drop(pins.hold(&version(), Holder::Call).await);
        assert!(!is_new());
        let of_collection = pins.hold_now(&version(), Holder::Collection("people".to_owned()));
        assert!(is_new());
        assert_eq!(pins.compared(), [version()]);
        drop(of_collection);
        assert!(is_new());
        assert!(pins.compared().is_empty());
    }
}
