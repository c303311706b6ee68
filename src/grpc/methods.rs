//! The table of methods: what the edge must know about a call before its handler runs.
//!
//! `build.rs` also reads this file, and fails if the table and the public contract differ (see `methods_check.rs`). So
//! it uses nothing else of the crate.

/// Which sides send a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    /// Neither: one request, one answer.
    Unary,
    /// Both: a stream of requests and a stream of answers.
    RequestStream,
    /// The server: one request, a stream of answers.
    ResponseStream,
}

/// The kind of permit that a call holds while it is in progress. The server has a fixed number of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PermitKind {
    /// None: the call is answered even while the server is at its limits or opening its store.
    None,
    /// A permit for a short call.
    Call,
    /// A permit for a stream of requests.
    Stream,
    /// A permit for a call that mostly waits for events.
    Watch,
}

/// The slowest resource that a call may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: all it needs is in memory.
    Nothing,
    /// The disk.
    Store,
    /// The device: a forward pass, a load or an unload.
    Device,
    /// The events of a training run.
    Run,
    /// The server's end: the call lasts as long as its caller wants.
    ServerEnd,
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Every caller, even without credentials.
    Anyone,
}

/// The state required of an open server to report a service as `SERVING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: these services repair what is broken.
    Nothing,
    /// The default model's champion.
    Predictions,
    /// At least one version that collections compare with, or no collection.
    Faces,
}

/// A method of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub(super) name: &'static str,
    pub(super) kind: CallKind,
    pub(super) permit: PermitKind,
    pub(super) waits: Waits,
    pub(super) who: Who,
}

impl Method {
    /// Returns true if the handler enforces the deadline, and the call keeps its permit until its answer has ended. For
    /// all other calls the edge enforces the deadline, and they always have one.
    pub(super) const fn is_long(&self) -> bool {
        !matches!(self.kind, CallKind::Unary) || matches!(self.waits, Waits::Run)
    }
}

/// A service with its methods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    /// `None` for services of gRPC itself: they have no health, and other crates provide their descriptors.
    pub(super) needs: Option<Needs>,
    pub(super) methods: &'static [Method],
}

use CallKind::{RequestStream, ResponseStream, Unary};
use Who::Anyone;

/// All methods of the server.
pub(super) const METHODS: &[Service] = &[
    Service {
        name: "visage.v1.VisageService",
        needs: Some(Needs::Predictions),
        methods: &[
            method("Predict", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("StreamPredict", RequestStream, PermitKind::Stream, Waits::Device, Anyone),
            method("FindSimilar", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("Train", Unary, PermitKind::Call, Waits::Store, Anyone),
        ],
    },
    Service {
        name: "visage.v1.ModelService",
        needs: Some(Needs::Nothing),
        methods: &[
            method("ListModels", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("GetModel", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("ListModelVersions", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("GetModelVersion", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("ImportModelVersion", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("SetModelAlias", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("LoadModelVersion", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("UnloadModelVersion", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("DeleteModelVersion", Unary, PermitKind::Call, Waits::Device, Anyone),
        ],
    },
    Service {
        name: "visage.v1.TrainingService",
        needs: Some(Needs::Nothing),
        methods: &[
            method("GetTrainingRun", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("ListTrainingRuns", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("WatchTrainingRun", ResponseStream, PermitKind::Watch, Waits::Run, Anyone),
        ],
    },
    Service {
        name: "visage.v1.FaceService",
        needs: Some(Needs::Faces),
        methods: &[
            method("CreateCollection", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("GetCollection", Unary, PermitKind::Call, Waits::Nothing, Anyone),
            method("ListCollections", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("DeleteCollection", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("EnrollFace", Unary, PermitKind::Call, Waits::Device, Anyone),
            method("StreamEnrollFaces", RequestStream, PermitKind::Stream, Waits::Device, Anyone),
            method("GetFace", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("ListFaces", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("DeleteFace", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("DeleteFaces", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("CompareFaces", Unary, PermitKind::Call, Waits::Device, Anyone),
        ],
    },
    Service {
        name: "google.longrunning.Operations",
        needs: Some(Needs::Nothing),
        methods: &[
            method("ListOperations", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("GetOperation", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("DeleteOperation", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("CancelOperation", Unary, PermitKind::Call, Waits::Store, Anyone),
            method("WaitOperation", Unary, PermitKind::Watch, Waits::Run, Anyone),
        ],
    },
    Service {
        name: "grpc.health.v1.Health",
        needs: None,
        methods: &[
            method("Check", Unary, PermitKind::None, Waits::Nothing, Anyone),
            method("Watch", ResponseStream, PermitKind::None, Waits::ServerEnd, Anyone),
        ],
    },
    Service {
        name: "grpc.reflection.v1.ServerReflection",
        needs: None,
        methods: &[method("ServerReflectionInfo", RequestStream, PermitKind::Watch, Waits::ServerEnd, Anyone)],
    },
    Service {
        name: "grpc.reflection.v1alpha.ServerReflection",
        needs: None,
        methods: &[method("ServerReflectionInfo", RequestStream, PermitKind::Watch, Waits::ServerEnd, Anyone)],
    },
];

/// The row of unknown paths; the router answers them with `UNIMPLEMENTED`.
const UNKNOWN: Method = method("", Unary, PermitKind::Call, Waits::Nothing, Anyone);

const fn method(name: &'static str, kind: CallKind, permit: PermitKind, waits: Waits, who: Who) -> Method {
    Method { name, kind, permit, waits, who }
}

/// Returns the row of a request's path.
pub(super) fn find(path: &str) -> &'static Method {
    let names = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let row = names.and_then(|(service, name)| {
        let service = METHODS.iter().find(|row| row.name == service)?;
        service.methods.iter().find(|row| row.name == name)
    });
    row.unwrap_or(&UNKNOWN)
}
