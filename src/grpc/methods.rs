//! The one table of methods: what the edge must know of a call before its handler runs.
//!
//! `build.rs` reads this file, too, and refuses to build when the table and the public contract differ (see
//! `methods_check.rs`). So it uses nothing of the crate.

/// Who sends more than one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nobody: one request, one answer.
    Unary,
    /// Both sides: a stream of requests, answered by a stream.
    RequestStream,
    /// The server: one request, a stream of answers.
    ResponseStream,
}

/// The place that a call takes while it is in work. The server has a fixed number of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// None: also a busy server answers, and one that is still opening its store.
    None,
    /// Of a call that is answered soon.
    Call,
    /// Of a stream of requests.
    Stream,
    /// Of a call that mostly waits for events.
    Watch,
}

/// The slowest thing that a call may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// Nothing: what it needs is in memory.
    Nothing,
    /// The disk.
    Store,
    /// The device: a forward pass, a load or an unload.
    Device,
    /// The events of a training run.
    Run,
    /// The end of the server: the call goes on for as long as its caller wants.
    ServerEnd,
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Every caller, also one that shows no credentials.
    Anyone,
}

/// What must be well for an open server to report a service as `SERVING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: these services replace what is broken.
    Nothing,
    /// The default model's champion.
    Predictions,
    /// The versions that collections compare with.
    Faces,
}

/// A method of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) place: Place,
    pub(super) waits: Waits,
    pub(super) who: Who,
}

impl Method {
    /// Returns true if the handler keeps the deadline and the call holds its place until its answer has ended. Of all
    /// other calls the edge keeps the deadline, and there always is one.
    pub(super) const fn is_long(&self) -> bool {
        !matches!(self.kind, Kind::Unary) || matches!(self.waits, Waits::Run)
    }
}

/// A service with its methods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    /// None for services of the protocol itself: they have no health, and their crates bring their descriptors.
    pub(super) needs: Option<Needs>,
    pub(super) methods: &'static [Method],
}

use Kind::{RequestStream, ResponseStream, Unary};
use Who::Anyone;

/// Every method that the server has.
pub(super) const METHODS: &[Service] = &[
    Service {
        name: "visage.v1.VisageService",
        needs: Some(Needs::Predictions),
        methods: &[
            method("Predict", Unary, Place::Call, Waits::Device, Anyone),
            method("StreamPredict", RequestStream, Place::Stream, Waits::Device, Anyone),
            method("FindSimilar", Unary, Place::Call, Waits::Device, Anyone),
            method("Train", Unary, Place::Call, Waits::Store, Anyone),
        ],
    },
    Service {
        name: "visage.v1.ModelService",
        needs: Some(Needs::Nothing),
        methods: &[
            method("ListModels", Unary, Place::Call, Waits::Store, Anyone),
            method("GetModel", Unary, Place::Call, Waits::Store, Anyone),
            method("ListModelVersions", Unary, Place::Call, Waits::Store, Anyone),
            method("GetModelVersion", Unary, Place::Call, Waits::Store, Anyone),
            method("ImportModelVersion", Unary, Place::Call, Waits::Device, Anyone),
            method("SetModelAlias", Unary, Place::Call, Waits::Device, Anyone),
            method("LoadModelVersion", Unary, Place::Call, Waits::Device, Anyone),
            method("UnloadModelVersion", Unary, Place::Call, Waits::Device, Anyone),
            method("DeleteModelVersion", Unary, Place::Call, Waits::Device, Anyone),
        ],
    },
    Service {
        name: "visage.v1.TrainingService",
        needs: Some(Needs::Nothing),
        methods: &[
            method("GetTrainingRun", Unary, Place::Call, Waits::Store, Anyone),
            method("ListTrainingRuns", Unary, Place::Call, Waits::Store, Anyone),
            method("WatchTrainingRun", ResponseStream, Place::Watch, Waits::Run, Anyone),
        ],
    },
    Service {
        name: "visage.v1.FaceService",
        needs: Some(Needs::Faces),
        methods: &[
            method("CreateCollection", Unary, Place::Call, Waits::Device, Anyone),
            method("GetCollection", Unary, Place::Call, Waits::Nothing, Anyone),
            method("ListCollections", Unary, Place::Call, Waits::Store, Anyone),
            method("DeleteCollection", Unary, Place::Call, Waits::Store, Anyone),
            method("EnrollFace", Unary, Place::Call, Waits::Device, Anyone),
            method("StreamEnrollFaces", RequestStream, Place::Stream, Waits::Device, Anyone),
            method("GetFace", Unary, Place::Call, Waits::Store, Anyone),
            method("ListFaces", Unary, Place::Call, Waits::Store, Anyone),
            method("DeleteFace", Unary, Place::Call, Waits::Store, Anyone),
            method("CompareFaces", Unary, Place::Call, Waits::Device, Anyone),
        ],
    },
    Service {
        name: "google.longrunning.Operations",
        needs: Some(Needs::Nothing),
        methods: &[
            method("ListOperations", Unary, Place::Call, Waits::Store, Anyone),
            method("GetOperation", Unary, Place::Call, Waits::Store, Anyone),
            method("DeleteOperation", Unary, Place::Call, Waits::Store, Anyone),
            method("CancelOperation", Unary, Place::Call, Waits::Store, Anyone),
            method("WaitOperation", Unary, Place::Watch, Waits::Run, Anyone),
        ],
    },
    Service {
        name: "grpc.health.v1.Health",
        needs: None,
        methods: &[
            method("Check", Unary, Place::None, Waits::Nothing, Anyone),
            method("Watch", ResponseStream, Place::None, Waits::ServerEnd, Anyone),
        ],
    },
    Service {
        name: "grpc.reflection.v1.ServerReflection",
        needs: None,
        methods: &[method("ServerReflectionInfo", RequestStream, Place::Watch, Waits::ServerEnd, Anyone)],
    },
    Service {
        name: "grpc.reflection.v1alpha.ServerReflection",
        needs: None,
        methods: &[method("ServerReflectionInfo", RequestStream, Place::Watch, Waits::ServerEnd, Anyone)],
    },
];

/// Stands for every path that the server does not have; the router answers such calls with `UNIMPLEMENTED`.
const UNKNOWN: Method = method("", Unary, Place::Call, Waits::Nothing, Anyone);

const fn method(name: &'static str, kind: Kind, place: Place, waits: Waits, who: Who) -> Method {
    Method { name, kind, place, waits, who }
}

/// Returns the row of the method at a request's path.
pub(super) fn find(path: &str) -> &'static Method {
    let names = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let row = names.and_then(|(service, name)| {
        let service = METHODS.iter().find(|row| row.name == service)?;
        service.methods.iter().find(|row| row.name == name)
    });
    row.unwrap_or(&UNKNOWN)
}
