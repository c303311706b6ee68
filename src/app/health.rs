//! The server's health, as health checks report it.

use std::time::Duration;

use tokio::sync::watch;

use super::App;

/// The health is computed this often even if nothing has announced a change.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What works now. Overload and invalid requests do not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// The default model's champion works, or there is none.
    pub predictions: bool,
    /// At least one version that collections compare with works, or there is no collection.
    pub faces: bool,
    /// The store takes writes. Reads and predictions work without.
    pub writes: bool,
    /// No stored record is known to be damaged or lost. What is not damaged is served.
    pub whole: bool,
}

impl Health {
    /// The health before any failure is known.
    pub(super) const HEALTHY: Self = Self { predictions: true, faces: true, writes: true, whole: true };

    /// A version is broken if it could not be loaded or fails every photo. A version that is not loaded yet is not
    /// broken: the first call loads it.
    fn of(app: &App) -> Self {
        let App { models, serving, .. } = app;
        let (writes, whole) = {
            let store = app.store_state.borrow();
            (store.writes_refused.is_none(), store.damage.is_empty() && app.faces.n_damaged() == 0)
        };
        if !serving.is_accepting() {
            return Self { predictions: false, faces: false, writes, whole };
        }
        let champion = models.resolve(None).ok();
        let compared = models.compared();
        Self {
            predictions: champion.is_none_or(|version| !models.is_broken(&version)),
            // One collection's broken version must not disable the others.
            faces: compared.is_empty() || compared.iter().any(|version| !models.is_broken(version)),
            writes,
            whole,
        }
    }
}

impl App {
    /// Loads the versions of aliases and collections. Those that cannot be loaded are skipped.
    pub(crate) async fn load_needed(&self) {
        self.models.load_needed().await;
        self.update_health();
    }

    /// Returns a receiver of the server's health.
    #[must_use]
    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Keeps [`App::health`] up to date until the server stops.
    pub(crate) async fn keep_health(&self) {
        let (mut device, mut models, mut store) =
            (self.serving.changes(), self.models.changes(), self.store_state.clone());
        let mut changed = async || {
            tokio::select! {
                changed = device.changed() => changed.is_ok(),
                changed = models.changed() => changed.is_ok(),
                changed = store.changed() => changed.is_ok(),
                // Damage that a search meets is only counted.
                () = tokio::time::sleep(LOOK_EVERY) => true,
            }
        };
        while self.stopping.run_until_cancelled(changed()).await.unwrap_or(false) {
            self.update_health();
        }
    }

    fn update_health(&self) {
        let now = Health::of(self);
        if self.health.send_if_modified(|health| std::mem::replace(health, now) != now) {
            tracing::info!(?now, "health has changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::{sleep, timeout};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        app::{Backends, Call, Wants, models::testing::answering, predict},
        config::Config,
        serving::testing::FakeEngineLoader,
        store::Batch,
        training::ProcessLauncher,
    };

    const PORTRAIT: &[u8] = include_bytes!("../../tests/fixtures/portrait.jpg");

    async fn predicts(app: &App) -> bool {
        let answer = predict(&Call::local(), &app.photos, None, PORTRAIT.into(), &Wants::default()).await;
        app.update_health();
        answer.is_ok()
    }

    #[tokio::test]
    async fn a_champion_that_fails_every_photo_is_seen_and_seen_to_recover() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let engines = FakeEngineLoader::new();
        let launcher = Arc::new(ProcessLauncher::this_binary().unwrap());
        let backends = Backends { engines: Arc::new(engines.clone()), launcher };
        let app = App::open_with(&config, backends, CancellationToken::new()).await.unwrap();
        app.load_needed().await;
        let health = app.health();
        assert_eq!(*health.borrow(), Health::HEALTHY, "without any model");

        app.models.registry().register(answering("face"), |_| Batch::default()).unwrap();
        app.models.refresh().await.unwrap();
        assert!(predicts(&app).await);
        assert_eq!(*health.borrow(), Health::HEALTHY);

        engines.panic_always(true);
        // One more than an engine's allowed failures: the engine is then loaded again, which also fails.
        for _ in 0..4 {
            assert!(!predicts(&app).await);
        }
        assert_eq!(*health.borrow(), Health { predictions: false, ..Health::HEALTHY });
        engines.panic_always(false);
        // A failed load is tried again after a back-off.
        let recovered = async {
            while !predicts(&app).await {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), recovered).await.unwrap();
        assert_eq!(*health.borrow(), Health::HEALTHY);

        app.serving.shutdown();
        app.update_health();
        assert_eq!(
            *health.borrow(),
            Health { predictions: false, faces: false, ..Health::HEALTHY },
            "without the device's threads"
        );
    }
}
