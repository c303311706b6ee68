//! Training runs as long-running operations with the same ids.

use std::time::{Duration, Instant};

use super::{Runs, record_batch, run_name};
use crate::{
    app::{AppError, Call, Page, Paged, blocking},
    names::{RunId, VersionName},
    proto::{rpc, store::RunRecord, v1},
    store::{StoreExt, Table},
};

/// The longest wait for the end of an operation, and the default.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A run and its outcome.
#[derive(Clone, Debug)]
pub(crate) struct RunOperation {
    /// The run's current state.
    pub run: v1::TrainingRun,
    /// The version that it made, or its error; `None` until it has ended.
    pub outcome: Option<Result<v1::ModelVersion, rpc::Status>>,
}

impl Runs {
    /// Returns a page of the operations, newest first.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn list_operations(&self, _: &Call, page: Page) -> Result<Paged<RunOperation>, AppError> {
        let Paged { items, next_page_token } = self.page(page, |record| !record.operation_deleted).await?;
        let mut operations = Vec::with_capacity(items.len());
        for run in items {
            operations.push(self.as_operation(run).await);
        }
        Ok(Paged { items: operations, next_page_token })
    }

    /// Returns an operation's current state.
    ///
    /// # Errors
    /// [`AppError::OperationNotFound`] when there is no such run, or its operation was deleted.
    pub(crate) async fn operation(&self, _: &Call, id: RunId) -> Result<RunOperation, AppError> {
        let record = self.operation_record(id).await?;
        Ok(self.as_operation(self.shown(&record)).await)
    }

    /// Waits until an operation is done, but at most for `timeout` and until the call's deadline. Returns its state
    /// then.
    ///
    /// # Errors
    /// As [`Runs::operation`]; [`AppError::Stopping`] when the server stops meanwhile.
    pub(crate) async fn wait(
        &self,
        call: &Call,
        id: RunId,
        timeout: Option<Duration>,
    ) -> Result<RunOperation, AppError> {
        self.operation_record(id.clone()).await?;
        let until = Instant::now() + timeout.map_or(LONGEST_WAIT, |timeout| timeout.min(LONGEST_WAIT));
        let until = call.deadline.map_or(until, |deadline| deadline.min(until));
        let mut watch = self.watched(id.clone(), 0).await?;
        let ended = async { while watch.next().await.is_some() {} };
        tokio::select! {
            _ = tokio::time::timeout_at(until.into(), ended) => {}
            () = self.shared.server_stopping.cancelled() => return Err(AppError::Stopping),
        }
        self.operation(call, id).await
    }

    /// Cancels a run.
    ///
    /// # Errors
    /// As [`Runs::operation`]; [`AppError::RunFinal`].
    pub(crate) async fn cancel_operation(&self, _: &Call, id: RunId) -> Result<(), AppError> {
        let record = self.operation_record(id).await?;
        match self.shared.active.lock().get(&record.id) {
            Some(active) => {
                active.cancel.cancel();
                Ok(())
            }
            None => Err(AppError::RunFinal {
                name: run_name(&record.id),
                state: record.state().as_str_name().trim_start_matches("RUN_STATE_").to_owned(),
            }),
        }
    }

    /// Marks an ended run's operation as deleted; the run itself stays.
    ///
    /// # Errors
    /// As [`Runs::operation`]; [`AppError::OperationRunning`].
    pub(crate) async fn delete_operation(&self, _: &Call, id: RunId) -> Result<(), AppError> {
        let name = operation_name(&id);
        if self.shared.active.lock().contains_key(id.as_str()) {
            return Err(AppError::OperationRunning { name });
        }
        let store = self.shared.store.clone();
        blocking(move || {
            let mut record = store
                .get_record::<RunRecord>(Table::Runs, id.as_str().as_bytes())?
                .filter(|r| !r.operation_deleted)
                .ok_or(AppError::OperationNotFound { name })?;
            record.operation_deleted = true;
            Ok(store.commit(record_batch(&record, None))?)
        })
        .await
    }

    async fn operation_record(&self, id: RunId) -> Result<RunRecord, AppError> {
        let name = operation_name(&id);
        match self.record(id).await {
            Ok(record) if !record.operation_deleted => Ok(record),
            Ok(_) | Err(AppError::RunNotFound { .. }) => Err(AppError::OperationNotFound { name }),
            Err(error) => Err(error),
        }
    }

    /// Adds a run's outcome. If its version has been deleted since, only the version's name is set.
    pub(super) async fn as_operation(&self, run: v1::TrainingRun) -> RunOperation {
        let outcome = match run.state() {
            v1::RunState::Succeeded => {
                let found = match VersionName::parse("version", &run.version) {
                    Ok(version) => self.shared.models.describe(version).await.ok(),
                    Err(_) => None,
                };
                let bare = || v1::ModelVersion { name: run.version.clone(), ..v1::ModelVersion::default() };
                Some(Ok(found.unwrap_or_else(bare)))
            }
            v1::RunState::Failed | v1::RunState::Cancelled => Some(Err(run.error.clone().unwrap_or_default())),
            v1::RunState::Unspecified | v1::RunState::Queued | v1::RunState::Running => None,
        };
        RunOperation { run, outcome }
    }
}

fn operation_name(id: &RunId) -> String {
    format!("operations/{id}")
}
