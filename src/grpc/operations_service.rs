//! `google.longrunning.Operations`: every training run is one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status};

use super::{
    convert::{id_after, page, train_operation},
    edge, status,
};
use crate::{
    app::{App, AppError, Page},
    proto::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest, operations_server,
    },
};

const PREFIX: &str = "operations/";

/// The longest a `WaitOperation` waits when its caller names no bound.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The service over its use cases.
pub(super) struct OperationsService {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl operations_server::Operations for OperationsService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let listed = async {
            if !r.filter.is_empty() {
                return Err(AppError::field("filter", "must be empty: operations cannot be filtered"));
            }
            if !matches!(r.name.trim_end_matches('/'), "" | "operations") {
                return Err(AppError::field("name", "must be \"operations\" or empty"));
            }
            let list = "operations".to_owned();
            let page = Page::parse(page(r.page_size, &r.page_token), self.app.page_limits, &list)?;
            self.app.runs.list(page, list, |run| !run.operation_deleted).await
        };
        let paged = listed.await.map_err(|e| status::from_app(&call, e))?;
        let mut operations = Vec::with_capacity(paged.items.len());
        for run in paged.items {
            operations.push(train_operation(&self.app, run).await);
        }
        Ok(Response::new(ListOperationsResponse { operations, next_page_token: paged.next_page_token }))
    }

    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        let call = edge::context(&request)?;
        let found = async { self.app.runs.operation(id_after("name", PREFIX, &request.get_ref().name)?).await };
        let run = found.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(train_operation(&self.app, run).await))
    }

    async fn delete_operation(&self, request: Request<DeleteOperationRequest>) -> Result<Response<()>, Status> {
        let call = edge::context(&request)?;
        let done = async { self.app.runs.delete_operation(id_after("name", PREFIX, &request.get_ref().name)?).await };
        done.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Result<Response<()>, Status> {
        let call = edge::context(&request)?;
        let done = async {
            let id = id_after("name", PREFIX, &request.get_ref().name)?;
            self.app.runs.operation(id.clone()).await?;
            self.app.runs.cancel(id).await
        };
        done.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn wait_operation(&self, request: Request<WaitOperationRequest>) -> Result<Response<Operation>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let waited = async {
            let id = id_after("name", PREFIX, &r.name)?;
            self.app.runs.operation(id.clone()).await?;
            let asked = match r.timeout {
                None => LONGEST_WAIT,
                Some(timeout) => {
                    Duration::try_from(timeout).map_err(|_| AppError::field("timeout", "must not be negative"))?
                }
            };
            let mut until = Instant::now() + asked.min(LONGEST_WAIT);
            if let Some(deadline) = call.deadline {
                until = until.min(deadline);
            }
            let mut watch = self.app.runs.watch(id.clone(), 0).await?;
            let ended = async { while watch.next().await.is_some() {} };
            // At the bound the operation is answered as it stands, which says that it is not done.
            tokio::select! {
                _ = tokio::time::timeout_at(until.into(), ended) => {}
                () = self.app.stopping.cancelled() => return Err(AppError::Stopping),
            }
            self.app.runs.operation(id).await
        };
        let run = waited.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(train_operation(&self.app, run).await))
    }
}
