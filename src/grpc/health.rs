//! Health by service, from the application's state.

use tokio::sync::watch;
use tonic_health::{ServingStatus, pb::health_server, server::HealthReporter};

use super::methods::{METHODS, Needs};
use crate::app::Health;

/// The health protocol's name for the whole server.
const WHOLE: &str = "";

/// Reports the health of every service that has one, and of the whole server.
pub(super) struct Reporter {
    reporter: HealthReporter,
    /// The last report; `None` while the server is opening or draining.
    last: Option<Health>,
}

impl Reporter {
    /// Creates a reporter with everything `NOT_SERVING`, and the service that publishes its reports.
    pub(super) async fn new() -> (Self, health_server::HealthServer<impl health_server::Health>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        for (name, _) in reported() {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
        (Self { reporter, last: None }, service)
    }

    /// Reports the changes; `None` while the server is opening or draining.
    pub(super) async fn report(&mut self, health: Option<Health>) {
        for (name, needs) in reported() {
            let is_well = serves(health, needs);
            // Watchers would receive every report, even an unchanged one.
            if is_well != serves(self.last, needs) {
                let status = if is_well { ServingStatus::Serving } else { ServingStatus::NotServing };
                self.reporter.set_service_status(name, status).await;
            }
        }
        self.last = health;
    }

    /// Reports every change until the application closes the channel.
    pub(super) async fn follow(&mut self, mut changes: watch::Receiver<Health>) {
        loop {
            let health = *changes.borrow_and_update();
            self.report(Some(health)).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Returns every name that has a health status, with the state that it requires; `None` means that it requires all
/// states, as the whole server does.
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
