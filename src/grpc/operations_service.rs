//! `google.longrunning.Operations`: every training run is an operation.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};

use super::{
    convert::{operation, page, run_id},
    serve,
};
use crate::{
    app::{App, AppError},
    proto::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest, operations_server,
    },
};

const PREFIX: &str = "operations/";

/// The service, on top of its use cases.
pub(super) struct OperationsService {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl operations_server::Operations for OperationsService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        serve::unary(request, async |call, r| {
            if !r.filter.is_empty() {
                return Err(AppError::field("filter", "must be empty: operations cannot be filtered"));
            }
            if !matches!(r.name.trim_end_matches('/'), "" | "operations") {
                return Err(AppError::field("name", "must be \"operations\" or empty"));
            }
            let page = page(&self.app, r.page_size, &r.page_token, "operations")?;
            let paged = self.app.runs.list_operations(call, page).await?.map(operation);
            Ok(ListOperationsResponse { operations: paged.items, next_page_token: paged.next_page_token })
        })
        .await
    }

    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        serve::unary(request, async |call, r| {
            Ok(operation(self.app.runs.operation(call, run_id("name", PREFIX, &r.name)?).await?))
        })
        .await
    }

    async fn delete_operation(&self, request: Request<DeleteOperationRequest>) -> Result<Response<()>, Status> {
        serve::unary(request, async |call, r| {
            self.app.runs.delete_operation(call, run_id("name", PREFIX, &r.name)?).await
        })
        .await
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Result<Response<()>, Status> {
        serve::unary(request, async |call, r| {
            self.app.runs.cancel_operation(call, run_id("name", PREFIX, &r.name)?).await
        })
        .await
    }

    async fn wait_operation(&self, request: Request<WaitOperationRequest>) -> Result<Response<Operation>, Status> {
        serve::unary(request, async |call, r| {
            let id = run_id("name", PREFIX, &r.name)?;
            let timeout = r.timeout.map(Duration::try_from).transpose();
            let timeout = timeout.map_err(|_| AppError::field("timeout", "must not be negative"))?;
            Ok(operation(self.app.runs.wait(call, id, timeout).await?))
        })
        .await
    }
}
