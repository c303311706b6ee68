"""What is read from a photo: the answers by head, the faces that were found, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

from google.protobuf.duration_pb2 import Duration
from visage.v1 import face_pb2, prediction_pb2, visage_service_pb2

from visage_client.errors import ArgumentError

# Which of a photo's faces are read: the largest, all of them up to the server's limit (the largest first), or the
# only one, in which case a photo of several is not answered.
FaceSelection = Literal["largest", "all", "single"]
# Where one face is needed: to enrol, to look for and to compare.
OneFace = Literal["largest", "single"]


@dataclass(frozen=True)
class Regression:
    """A number with its interval, all in `unit`. The interval is None where the version has no calibration."""

    value: float
    unit: str
    lower: float | None
    upper: float | None
    # The share of the truth that such intervals held, 0 to 1.
    coverage: float | None


@dataclass(frozen=True)
class Classification:
    """A choice among labels."""

    label: str
    probability: float
    # Every label's probability, most probable first.
    probabilities: Mapping[str, float]


Answer = Union[Regression, Classification]


@dataclass(frozen=True)
class Timing:
    """Where the server's time went, in seconds."""

    decode_s: float
    queue_s: float
    inference_s: float
    total_s: float
    # Images that went through the network together.
    batch_size: int
    # Finding faces, and cutting them out and judging their pictures; None where whole photos are read.
    detection_s: float | None
    alignment_s: float | None
    # The embedding network; None where no embedding was asked for.
    embedding_s: float | None

    @staticmethod
    def from_proto(m: prediction_pb2.Timing) -> Timing:
        detection_s, alignment_s, embedding_s = (
            seconds(getattr(m, name)) if m.HasField(name) else None for name in ("detection", "alignment", "embedding")
        )
        return Timing(
            decode_s=seconds(m.decode),
            queue_s=seconds(m.queue),
            inference_s=seconds(m.inference),
            total_s=seconds(m.total),
            batch_size=m.batch_size,
            detection_s=detection_s,
            alignment_s=alignment_s,
            embedding_s=embedding_s,
        )


@dataclass(frozen=True)
class BoundingBox:
    """Around a face, from brow to chin, in pixels of the photo as it was sent, turned upright.

    It may reach beyond the photo's edges.
    """

    left: float
    top: float
    right: float
    bottom: float

    @staticmethod
    def from_proto(m: face_pb2.BoundingBox) -> BoundingBox:
        return BoundingBox(m.left, m.top, m.right, m.bottom)


@dataclass(frozen=True)
class Point:
    """In pixels from the photo's upper left corner."""

    x: float
    y: float


@dataclass(frozen=True)
class Embedding:
    """A vector of an embedding space. An empty `space` means the collection's."""

    values: Sequence[float]
    space: str = ""


@dataclass(frozen=True)
class FaceReading:
    """A face that was found in a photo, and what was made of it."""

    box: BoundingBox
    # Eye, eye, tip of the nose, corner and corner of the mouth; of each pair the left one in the picture first.
    landmarks: Sequence[Point]
    # How fit its picture is to be judged, by the signal's name, such as "face_px".
    quality: Mapping[str, float]
    # By head; empty when abstained.
    predictions: Mapping[str, Answer]
    # True when the face cannot be judged; `abstention_reasons` says why, such as "BLURRED".
    abstained: bool
    abstention_reasons: Sequence[str]
    # None where it was not asked for, and when abstained.
    embedding: Embedding | None
    # Whether it is upside down in the photo. It is rotated to be read.
    upside_down: bool

    @staticmethod
    def from_proto(m: face_pb2.FaceReading) -> FaceReading:
        return FaceReading(
            box=BoundingBox.from_proto(m.box),
            landmarks=[Point(p.x, p.y) for p in m.landmarks],
            quality=dict(m.quality),
            predictions=_answers(m.predictions),
            abstained=m.abstained,
            abstention_reasons=reasons_from_proto(m.abstention_reasons),
            embedding=Embedding(list(m.embedding.values), m.embedding.space) if m.HasField("embedding") else None,
            upside_down=m.upside_down,
        )


@dataclass(frozen=True)
class PredictResult:
    """One photo's answers by head. When `abstained`, there are none and `abstention_reasons` says why.

    Where faces are read, these are the first face's, which is the largest; `faces` has them all.
    """

    model_version: str
    predictions: Mapping[str, Answer]
    abstained: bool
    # Such as "FACE_TOO_SMALL".
    abstention_reasons: Sequence[str]
    timing: Timing
    # Those that were read, the largest first; empty for a version that reads whole photos.
    faces: Sequence[FaceReading]
    # Found, read or not.
    n_faces_found: int
    # What was odd about the photo's file, such as "END_MISSING".
    photo_notes: Sequence[str]

    @staticmethod
    def from_proto(m: visage_service_pb2.PredictResponse) -> PredictResult:
        return PredictResult(
            model_version=m.model_version,
            predictions=_answers(m.predictions),
            abstained=m.abstained,
            abstention_reasons=reasons_from_proto(m.abstention_reasons),
            timing=Timing.from_proto(m.timing),
            faces=[FaceReading.from_proto(face) for face in m.faces],
            n_faces_found=m.n_faces_found,
            photo_notes=notes_from_proto(m.photo_notes),
        )


def selection_to_proto(selection: FaceSelection) -> face_pb2.FaceSelection:
    """The contract's number; an `ArgumentError` for another word than the three."""
    numbers = {
        "largest": face_pb2.FACE_SELECTION_LARGEST,
        "all": face_pb2.FACE_SELECTION_ALL,
        "single": face_pb2.FACE_SELECTION_SINGLE,
    }
    if selection not in numbers:
        raise ArgumentError("face_selection", f"{selection!r} is none of {', '.join(numbers)}")
    return numbers[selection]


def thresholds_to_proto(thresholds: Mapping[str, float]) -> face_pb2.QualityThresholds:
    """The thresholds that were named, the others absent; an `ArgumentError` for a name that the contract lacks."""
    known = face_pb2.QualityThresholds.DESCRIPTOR.fields_by_name
    message = face_pb2.QualityThresholds()
    for name, value in thresholds.items():
        if name not in known:
            raise ArgumentError(f"thresholds.{name}", f"is none of {', '.join(known)}")
        setattr(message, name, value)
    return message


def thresholds_from_proto(m: face_pb2.QualityThresholds) -> Mapping[str, float]:
    """Those that are set, by name."""
    return {field.name: value for field, value in m.ListFields()}


def reasons_from_proto(reasons: Iterable[prediction_pb2.AbstentionReason]) -> Sequence[str]:
    """Their names without the prefix."""
    return [prediction_pb2.AbstentionReason.Name(r).removeprefix("ABSTENTION_REASON_") for r in reasons]


def notes_from_proto(notes: Iterable[prediction_pb2.PhotoNote]) -> Sequence[str]:
    """Their names without the prefix."""
    return [prediction_pb2.PhotoNote.Name(n).removeprefix("PHOTO_NOTE_") for n in notes]


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.ToTimedelta().total_seconds()


def _answers(predictions: Iterable[prediction_pb2.Prediction]) -> Mapping[str, Answer]:
    answers: dict[str, Answer] = {}
    for p in predictions:
        if p.WhichOneof("result") == "regression":
            r = p.regression
            lower, upper, coverage = (
                getattr(r, name) if r.HasField(name) else None for name in ("lower", "upper", "coverage")
            )
            answers[p.head] = Regression(r.value, r.unit, lower, upper, coverage)
        else:
            c = p.classification
            answers[p.head] = Classification(c.label, c.probability, {x.label: x.probability for x in c.classes})
    return answers
