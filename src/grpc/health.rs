//! Health by service, from the application's state.

use tokio::sync::watch;
use tonic_health::{ServingStatus, pb::health_server, server::HealthReporter};

use super::methods::{METHODS, Needs};
use crate::app::Health;

/// The health protocol's name for the whole server.
const WHOLE: &str = "";

/// The name for the store: not serving while writes are refused, or if a record is damaged or lost.
const STORE: &str = "visage.store";

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
        for (name, subject) in reported() {
            let is_well = serves(health, subject);
            // Watchers would receive every report, even an unchanged one.
            if is_well != serves(self.last, subject) {
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

/// Returns every name that has a health status, except that of the whole server.
pub(crate) fn health_names() -> impl Iterator<Item = &'static str> {
    reported().map(|(name, _)| name).filter(|name| *name != WHOLE)
}

/// Each reported name stands for one of these.
#[derive(Clone, Copy)]
enum Subject {
    Service(Needs),
    Store,
    /// The whole server.
    Whole,
}

/// Returns every name that has a health status, with what it stands for.
fn reported() -> impl Iterator<Item = (&'static str, Subject)> {
    let services = METHODS.iter().filter_map(|service| Some((service.name, Subject::Service(service.needs?))));
    services.chain([(STORE, Subject::Store), (WHOLE, Subject::Whole)])
}

fn serves(health: Option<Health>, subject: Subject) -> bool {
    health.is_some_and(|health| match subject {
        Subject::Service(Needs::Nothing) => true,
        Subject::Service(Needs::Predictions) => health.predictions,
        Subject::Service(Needs::Faces) => health.faces,
        Subject::Store => health.writes && health.whole,
        Subject::Whole => health.predictions && health.faces && health.writes,
    })
}
