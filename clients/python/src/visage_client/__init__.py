"""A typed client of Visage: read a face photo, find similar faces, train a model.

    from visage_client import Client

    with Client("127.0.0.1:50051") as visage:
        answer = visage.predict(open("portrait.jpg", "rb").read())
        print(answer.predictions["age"].value)

Every call raises `VisageError` with the code, the machine-readable reason and the details that the server sent.
"""

from visage_client.client import Client
from visage_client.errors import ArgumentError, VisageError
from visage_client.identity import FalseMatchPoint, FalseMatchRate, IdentityCalibration, IdentityEvidence
from visage_client.readings import (
    Answer,
    BoundingBox,
    Classification,
    Embedding,
    FaceReading,
    FaceSelection,
    OneFace,
    Point,
    PredictResult,
    Regression,
    Timing,
)
from visage_client.types import (
    Collection,
    Comparison,
    DataReport,
    EmbeddingSpace,
    EnrollItem,
    Face,
    FaceReader,
    Head,
    Match,
    Model,
    ModelVersion,
    Progress,
    Recipe,
    SimilarResult,
    Stage,
    TrainingRun,
    WatchEvent,
)

__all__ = [
    "Answer",
    "ArgumentError",
    "BoundingBox",
    "Classification",
    "Client",
    "Collection",
    "Comparison",
    "DataReport",
    "Embedding",
    "EmbeddingSpace",
    "EnrollItem",
    "Face",
    "FaceReader",
    "FaceReading",
    "FaceSelection",
    "FalseMatchPoint",
    "FalseMatchRate",
    "Head",
    "IdentityCalibration",
    "IdentityEvidence",
    "Match",
    "Model",
    "ModelVersion",
    "OneFace",
    "Point",
    "PredictResult",
    "Progress",
    "Recipe",
    "Regression",
    "SimilarResult",
    "Stage",
    "Timing",
    "TrainingRun",
    "VisageError",
    "WatchEvent",
]
