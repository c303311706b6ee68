"""A typed client of Visage: read a face photo, find similar faces, train a model.

    from visage_client import Client

    with Client("127.0.0.1:50051") as visage:
        answer = visage.predict(open("portrait.jpg", "rb").read())
        print(answer.predictions["age"].value)

Every call raises `VisageError` with the code, the machine-readable reason and the details that the server sent.
"""

from visage_client.client import Client
from visage_client.errors import VisageError
from visage_client.types import (
    Classification,
    Collection,
    DataReport,
    Embedding,
    EmbeddingSpace,
    EnrollItem,
    Face,
    Head,
    Match,
    Model,
    ModelVersion,
    PredictResult,
    Progress,
    Recipe,
    Regression,
    SimilarResult,
    Stage,
    Timing,
    TrainingRun,
    WatchEvent,
)

__all__ = [
    "Classification",
    "Client",
    "Collection",
    "DataReport",
    "Embedding",
    "EmbeddingSpace",
    "EnrollItem",
    "Face",
    "Head",
    "Match",
    "Model",
    "ModelVersion",
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
