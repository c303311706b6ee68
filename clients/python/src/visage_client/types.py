"""What goes in and comes out, as plain dataclasses. Each `from_proto` reads one message of the contract.

What is read from a photo stands in `readings`, what scores say about identity in `identity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from visage.v1 import (
    face_service_pb2,
    model_service_pb2,
    recipe_pb2,
    training_service_pb2,
    visage_service_pb2,
)

from visage_client.errors import VisageError
from visage_client.identity import IdentityCalibration, IdentityEvidence
from visage_client.readings import (
    Embedding,
    FaceReading,
    OneFace,
    Timing,
    notes_from_proto,
    reasons_from_proto,
    seconds,
    selection_to_proto,
    thresholds_from_proto,
)


def _time(message: Any, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Face:
    """An enrolled face."""

    # collections/{c}/faces/{f}
    name: str
    create_time: datetime | None
    subject: str
    labels: Mapping[str, str]
    embedding_space: str

    @staticmethod
    def from_proto(m: face_service_pb2.Face) -> Face:
        return Face(m.name, _time(m, "create_time"), m.subject, dict(m.labels), m.embedding_space)


@dataclass(frozen=True)
class Match:
    """A face that was found; `score` is the cosine similarity, -1 to 1."""

    face: Face
    score: float
    # What the score means; None where the space is not calibrated on identities.
    identity: IdentityEvidence | None

    @staticmethod
    def from_proto(m: visage_service_pb2.SimilarFace) -> Match:
        identity = IdentityEvidence.from_proto(m.identity) if m.HasField("identity") else None
        return Match(Face.from_proto(m.face), m.score, identity)


@dataclass(frozen=True)
class SimilarResult:
    """The faces found, best first."""

    matches: Sequence[Match]
    # Whether every face was compared.
    exact: bool
    embedding_space: str
    timing: Timing
    # Where the query was a photo: what was odd about its file, such as "END_MISSING".
    photo_notes: Sequence[str]

    @staticmethod
    def from_proto(m: visage_service_pb2.FindSimilarResponse) -> SimilarResult:
        return SimilarResult(
            matches=[Match.from_proto(x) for x in m.matches],
            exact=m.exact,
            embedding_space=m.embedding_space,
            timing=Timing.from_proto(m.timing),
            photo_notes=notes_from_proto(m.photo_notes),
        )


@dataclass(frozen=True)
class Comparison:
    """How alike two photos' faces are. When `abstained` there is no score, and `abstention_reasons` says why."""

    # Cosine similarity, -1 to 1.
    score: float | None
    # What the score means; None where the space is not calibrated on identities.
    identity: IdentityEvidence | None
    # The space in which the score was made.
    embedding_space: str
    # The face in each photo, without predictions and embedding; None where none was found or whole photos are compared.
    first_face: FaceReading | None
    second_face: FaceReading | None
    abstained: bool
    # Of both photos together, such as "NO_FACE".
    abstention_reasons: Sequence[str]
    # The total is the call's; the other parts are those of the first photo.
    timing: Timing
    # What was odd about each photo's file, such as "END_MISSING".
    first_photo_notes: Sequence[str]
    second_photo_notes: Sequence[str]

    @staticmethod
    def from_proto(m: face_service_pb2.CompareFacesResponse) -> Comparison:
        return Comparison(
            score=m.score if m.HasField("score") else None,
            identity=IdentityEvidence.from_proto(m.identity) if m.HasField("identity") else None,
            embedding_space=m.embedding_space,
            first_face=FaceReading.from_proto(m.first_face) if m.HasField("first_face") else None,
            second_face=FaceReading.from_proto(m.second_face) if m.HasField("second_face") else None,
            abstained=m.abstained,
            abstention_reasons=reasons_from_proto(m.abstention_reasons),
            timing=Timing.from_proto(m.timing),
            first_photo_notes=notes_from_proto(m.first_photo_notes),
            second_photo_notes=notes_from_proto(m.second_photo_notes),
        )


@dataclass(frozen=True)
class EnrollItem:
    """A face to enrol on a stream: a photo's bytes or a vector."""

    source: bytes | Embedding
    face_id: str = ""
    subject: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    # Which of the photo's faces; of no effect on a vector, and where whole photos are read.
    face_selection: OneFace = "largest"

    def __post_init__(self) -> None:
        # Here, because on the stream it would fail every other item, too.
        selection_to_proto(self.face_selection)


@dataclass(frozen=True)
class Collection:
    """Faces that are compared in one embedding space."""

    # collections/{collection}
    name: str
    create_time: datetime | None
    embedding_space: str
    dimensions: int
    n_faces: int
    display_name: str

    @staticmethod
    def from_proto(m: face_service_pb2.Collection) -> Collection:
        return Collection(m.name, _time(m, "create_time"), m.embedding_space, m.dimensions, m.n_faces, m.display_name)


@dataclass(frozen=True)
class Model:
    """A model and where its aliases point."""

    # models/{model}
    name: str
    create_time: datetime | None
    # Alias to version name.
    aliases: Mapping[str, str]
    latest_version: int

    @staticmethod
    def from_proto(m: model_service_pb2.Model) -> Model:
        return Model(m.name, _time(m, "create_time"), dict(m.aliases), m.latest_version)


@dataclass(frozen=True)
class EmbeddingSpace:
    """A layer whose output can be compared."""

    # models/{model}/versions/{n}#{layer}
    name: str
    dimensions: int


@dataclass(frozen=True)
class FaceReader:
    """How a version reads faces."""

    # The version that finds them: models/{model}/versions/{n}.
    detector: str
    # The version whose embedding its answers are paired with; empty: none.
    embedder: str
    # What a face must reach to be answered where a call says nothing, by name; face.proto has units and ranges.
    thresholds: Mapping[str, float]

    @staticmethod
    def from_proto(m: model_service_pb2.FaceReader) -> FaceReader:
        return FaceReader(m.detector, m.embedder, thresholds_from_proto(m.thresholds))


@dataclass(frozen=True)
class ModelVersion:
    """An immutable version of a model."""

    # models/{model}/versions/{n}
    name: str
    create_time: datetime | None
    # Such as "RESNET34" or "DLIB_AGE_GENDER".
    architecture: str
    # Their names; a detector and a face descriptor have none.
    heads: Sequence[str]
    image_size_px: int
    # Measured on the validation part, such as "age.mae".
    metrics: Mapping[str, float]
    # Its own; it may have none, and be paired with another version's: see `face_reader`.
    embedding_spaces: Sequence[EmbeddingSpace]
    # trainingRuns/{id}; empty for an import.
    training_run: str
    # SHA-256 over the manifest, in hex.
    digest: str
    # Such as "LOADED".
    load_state: str
    weight_bytes: int
    aliases: Sequence[str]
    # None for a version that reads whole photos.
    face_reader: FaceReader | None
    # What the scores of its embedding space mean; None where that was not measured.
    identity_calibration: IdentityCalibration | None
    # The weights' licence (an SPDX expression) and where they were published; empty where nobody said.
    licence: str
    source: str

    @staticmethod
    def from_proto(m: model_service_pb2.ModelVersion) -> ModelVersion:
        return ModelVersion(
            name=m.name,
            create_time=_time(m, "create_time"),
            architecture=recipe_pb2.Architecture.Name(m.architecture).removeprefix("ARCHITECTURE_"),
            heads=[head.name for head in m.heads],
            image_size_px=m.image_size_px,
            metrics=dict(m.metrics),
            embedding_spaces=[EmbeddingSpace(s.name, s.dimensions) for s in m.embedding_spaces],
            training_run=m.provenance.training_run,
            digest=m.digest,
            load_state=model_service_pb2.LoadState.Name(m.load_state).removeprefix("LOAD_STATE_"),
            weight_bytes=m.weight_bytes,
            aliases=list(m.aliases),
            face_reader=FaceReader.from_proto(m.face_reader) if m.HasField("face_reader") else None,
            identity_calibration=(
                IdentityCalibration.from_proto(m.identity_calibration) if m.HasField("identity_calibration") else None
            ),
            licence=m.provenance.licence,
            source=m.provenance.source,
        )


@dataclass(frozen=True)
class Head:
    """One thing to predict: a number when `unit` is given, a choice among labels when not."""

    name: str
    unit: str | None = None
    # In order; none: all that the training part holds. Only for a choice.
    labels: Sequence[str] = ()
    # The label column; empty: the head's name.
    column: str = ""
    loss_weight: float | None = None

    def to_proto(self) -> recipe_pb2.Head:
        head = recipe_pb2.Head(name=self.name, column=self.column, loss_weight=self.loss_weight)
        if self.unit is None:
            head.classification.SetInParent()
            head.classification.labels.extend(self.labels)
        else:
            head.regression.unit = self.unit
            head.regression.SetInParent()
        return head


@dataclass(frozen=True)
class Stage:
    """A one-cycle run over the data at one image size."""

    epochs: int
    image_size_px: int
    # The cycle's peak; 0: the server's default.
    max_learning_rate: float = 0.0
    freeze_body: bool = False

    def to_proto(self) -> recipe_pb2.Stage:
        return recipe_pb2.Stage(
            epochs=self.epochs,
            image_size_px=self.image_size_px,
            max_learning_rate=self.max_learning_rate,
            freeze_body=self.freeze_body,
        )


@dataclass(frozen=True)
class Recipe:
    """How a version is trained. What is None or 0 is the server's default; recipe.proto explains each."""

    heads: Sequence[Head]
    stages: Sequence[Stage]
    # "RESNET18", "RESNET34" or "RESNET50".
    architecture: str = "RESNET34"
    batch_size: int = 0
    weight_decay: float | None = None
    dropout: float | None = None
    seed: int = 0
    # models/{model}@{alias} or models/{model}/versions/{n} to start from.
    warm_start_version: str = ""
    # A weights file with torchvision's names on the server, to start from.
    warm_start_path: str = ""
    valid_fraction: float | None = None
    calibration_fraction: float | None = None
    coverage: float | None = None
    max_bad_fraction: float | None = None

    def to_proto(self) -> recipe_pb2.Recipe:
        recipe = recipe_pb2.Recipe(
            architecture=f"ARCHITECTURE_{self.architecture}",
            heads=[head.to_proto() for head in self.heads],
            stages=[stage.to_proto() for stage in self.stages],
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            seed=self.seed,
            valid_fraction=self.valid_fraction,
            calibration_fraction=self.calibration_fraction,
            coverage=self.coverage,
            max_bad_fraction=self.max_bad_fraction,
        )
        if self.warm_start_version:
            recipe.version = self.warm_start_version
        elif self.warm_start_path:
            recipe.weights_path = self.warm_start_path
        return recipe


@dataclass(frozen=True)
class Progress:
    """How far a run is; stage, epoch and step count from 1."""

    stage: int
    n_stages: int
    epoch: int
    n_epochs: int
    step: int
    n_steps: int
    loss: float
    metrics: Mapping[str, float]
    images_per_second: float
    eta_s: float

    @staticmethod
    def from_proto(m: training_service_pb2.Progress) -> Progress:
        return Progress(
            m.stage,
            m.n_stages,
            m.epoch,
            m.n_epochs,
            m.step,
            m.n_steps,
            m.loss,
            dict(m.metrics),
            m.images_per_second,
            seconds(m.eta),
        )


@dataclass(frozen=True)
class DataReport:
    """What a run found in its sources."""

    rows: int
    train: int
    valid: int
    calibration: int
    # Rows left out, by kind of reason.
    rejected: Mapping[str, int]
    fingerprint: str

    @staticmethod
    def from_proto(m: training_service_pb2.DataReport) -> DataReport:
        return DataReport(m.rows, m.train, m.valid, m.calibration, dict(m.rejected), m.fingerprint)


@dataclass(frozen=True)
class TrainingRun:
    """A training run. `version` is set once it succeeded, `error` when it failed or was cancelled."""

    # trainingRuns/{id}
    name: str
    model: str
    # "QUEUED", "RUNNING", "SUCCEEDED", "FAILED" or "CANCELLED".
    state: str
    create_time: datetime | None
    end_time: datetime | None
    version: str
    metrics: Mapping[str, float]
    error: VisageError | None

    @staticmethod
    def from_proto(m: training_service_pb2.TrainingRun) -> TrainingRun:
        return TrainingRun(
            name=m.name,
            model=m.model,
            state=training_service_pb2.RunState.Name(m.state).removeprefix("RUN_STATE_"),
            create_time=_time(m, "create_time"),
            end_time=_time(m, "end_time"),
            version=m.version,
            metrics=dict(m.metrics),
            error=VisageError.from_status(m.error) if m.HasField("error") else None,
        )


@dataclass(frozen=True)
class WatchEvent:
    """One event of a run: a new state's name, the data's report, progress, or the ended run."""

    # Rises by one; give it to `watch` again to go on after a broken stream.
    sequence: int
    event: str | DataReport | Progress | TrainingRun

    @staticmethod
    def from_proto(m: training_service_pb2.WatchTrainingRunResponse) -> WatchEvent:
        event: str | DataReport | Progress | TrainingRun
        kind = m.WhichOneof("event")
        if kind == "data":
            event = DataReport.from_proto(m.data)
        elif kind == "progress":
            event = Progress.from_proto(m.progress)
        elif kind == "ended":
            event = TrainingRun.from_proto(m.ended)
        else:
            event = training_service_pb2.RunState.Name(m.state).removeprefix("RUN_STATE_")
        return WatchEvent(m.sequence, event)
