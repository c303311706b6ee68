//! Health as callers see it: by service, from what the application says that it can do.

use tokio::sync::watch;
use tonic_health::{ServingStatus, pb::health_server, server::HealthReporter};

use super::methods::{METHODS, Needs};
use crate::app::Health;

/// The name under which the health of the whole server is asked.
const WHOLE: &str = "";

/// Reports the health of every service that has one, and of the whole.
pub(super) struct Reporter {
    reporter: HealthReporter,
    /// None: the server is not open, or drains.
    last: Option<Health>,
}

impl Reporter {
    /// A reporter that says `NOT_SERVING` of everything, and the service that answers with what it reports.
    pub(super) async fn new() -> (Self, health_server::HealthServer<impl health_server::Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        for (name, _) in reported() {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
        (Self { reporter, last: None }, service)
    }

    /// Reports what has changed; `None` while the server is not open, or drains.
    pub(super) async fn report(&mut self, health: Option<Health>) {
        for (name, needs) in reported() {
            let is_well = serves(health, needs);
            // Watchers are sent every report, also one that changes nothing.
            if is_well != serves(self.last, needs) {
                let status = if is_well { ServingStatus::Serving } else { ServingStatus::NotServing };
                self.reporter.set_service_status(name, status).await;
            }
        }
        self.last = health;
    }

    /// Reports every change, for as long as the application gives news.
    pub(super) async fn follow(&mut self, mut news: watch::Receiver<Health>) {
        loop {
            let health = *news.borrow_and_update();
            self.report(Some(health)).await;
            if news.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What is reported, each with what it needs; the whole needs everything.
fn reported() -> impl Iterator<Item = (&'static str, Option<Needs>)> {
    let services = METHODS.iter().filter(|service| service.needs.is_some());
    services.map(|service| (service.name, service.needs)).chain([(WHOLE, None)])
}

fn serves(health: Option<Health>, needs: Option<Needs>) -> bool {
    health.is_some_and(|health| match needs {
        Some(Needs::Nothing) => true,
        Some(Needs::Predictions) => health.predictions,
        Some(Needs::Faces) => health.faces,
        None => health.predictions && health.faces,
    })
}
