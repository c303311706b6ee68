//! What the server can do now, as health checks report it.

use std::time::Duration;

use tokio::sync::watch;

use super::{App, Models};
use crate::serving::ServingPool;

/// How often health is looked at. Whoever is sent elsewhere notices it no sooner.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the server can do now. Overload and users' errors change nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The default model's champion answers, or there is none.
    pub predictions: bool,
    /// The version that some collection compares with answers, or there is no collection.
    pub faces: bool,
}

impl Health {
    /// One that nothing is known against.
    pub(super) const WELL: Self = Self { predictions: true, faces: true };

    /// A version counts as broken when it could not be loaded, or fails every photo. One that is not loaded yet is
    /// not: the first call that needs it loads it.
    fn of(models: &Models, serving: &ServingPool) -> Self {
        if !serving.ready() {
            return Self { predictions: false, faces: false };
        }
        let champion = models.resolve(None).ok();
        let compared = models.compared();
        Self {
            predictions: champion.is_none_or(|version| !models.is_broken(&version)),
            // One collection's broken version must not take the others away.
            faces: compared.is_empty() || compared.iter().any(|version| !models.is_broken(version)),
        }
    }
}

impl App {
    /// Loads what aliases and collections need, as far as it can be loaded.
    pub async fn load_needed(&self) {
        self.models.load_needed().await;
        self.look_at_health();
    }

    /// Follows what the server can do.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Keeps [`App::health`] true until the server stops.
    pub async fn keep_health(&self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        while self.stopping.run_until_cancelled(looks.tick()).await.is_some() {
            self.look_at_health();
        }
    }

    fn look_at_health(&self) {
        let now = Health::of(&self.models, &self.serving);
        self.health.send_if_modified(|health| std::mem::replace(health, now) != now);
    }
}
