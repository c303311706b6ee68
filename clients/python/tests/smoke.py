#!/usr/bin/env python3
"""Lists and calls every service of a running server, as a caller in Python would.

    smoke.py 127.0.0.1:50051 --photo portrait.jpg --model models/age --data faces/

Without --model, or on a server that has no model with a champion, what needs one is left out and said to be. With
--data (a folder of UTKFace file names under one of the server's roots) it also trains for one epoch and watches.
Exits with 1 at the first thing that is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from pathlib import Path
from typing import Callable

import _paths  # noqa: F401
import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from visage_client import Client, Embedding, EnrollItem, Face, Head, PredictResult, Recipe, Stage, TrainingRun
from visage_client import VisageError

OURS = ["visage.v1.VisageService", "visage.v1.ModelService", "visage.v1.TrainingService", "visage.v1.FaceService"]
STANDARD = ["google.longrunning.Operations", "grpc.health.v1.Health"]


def main() -> int:
    parser = argparse.ArgumentParser(description="List and call every service of a running server.")
    parser.add_argument("server", help="host:port")
    parser.add_argument("--photo", type=Path, help="a photo of one face")
    parser.add_argument("--model", default="", help="models/{model} with a champion")
    parser.add_argument("--data", default="", help="a training folder on the server")
    options = parser.parse_args()
    with grpc.insecure_channel(options.server) as channel, Client(options.server, timeout_s=60) as visage:
        services(channel)
        health(channel)
        operations(channel)
        models(visage)
        refusals(visage)
        if options.data:
            options.model = options.model or train(visage, options.data)
        model = options.model or next((m.name for m in visage.models() if "champion" in m.aliases), "")
        if model and options.photo:
            photo = options.photo.read_bytes()
            predict(visage, model, photo)
            faces(visage, model, photo)
        else:
            print("left out: Predict, FindSimilar and the faces need --photo and a model with a champion")
    print("every service answered as it should")
    return 0


def services(channel: grpc.Channel) -> None:
    names = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    missing = [name for name in OURS + STANDARD if name not in names]
    check(not missing, f"reflection lists every service (missing: {missing})")


def health(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ["", *OURS]:
        status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
        check(status == health_pb2.HealthCheckResponse.SERVING, f"health of {name or 'the server'} is SERVING")


def operations(channel: grpc.Channel) -> None:
    stub = operations_pb2_grpc.OperationsStub(channel)
    page = stub.ListOperations(operations_pb2.ListOperationsRequest(name="operations"), timeout=10)
    check(all(o.name.startswith("operations/") for o in page.operations), "Operations lists operations")
    for operation in page.operations:
        again = stub.GetOperation(operations_pb2.GetOperationRequest(name=operation.name), timeout=10)
        check(again.name == operation.name, f"Operations gets {operation.name}")


def models(visage: Client) -> None:
    found = list(visage.models(page_size=2))
    check(len({m.name for m in found}) == len(found), f"ModelService lists {len(found)} models, each once")
    for model in found:
        check(visage.get_model(model.name) == model, f"ModelService gets {model.name}")
        for version in visage.versions(model.name):
            check(visage.get_version(version.name).digest == version.digest, f"ModelService gets {version.name}")
        for alias, name in model.aliases.items():
            check(visage.get_version(f"{model.name}@{alias}").name == name, f"@{alias} is {name}")


def refusals(visage: Client) -> None:
    refused("NOT_FOUND", "MODEL_NOT_FOUND", lambda: visage.get_model("models/no-such-model"))
    refused("NOT_FOUND", "TRAINING_RUN_NOT_FOUND", lambda: visage.get_run(f"trainingRuns/{uuid.uuid4()}"))
    refused("NOT_FOUND", "COLLECTION_NOT_FOUND", lambda: visage.get_collection("collections/no-such-collection"))
    recipe = Recipe(heads=[Head("age", unit="years")], stages=[Stage(epochs=1, image_size_px=64)])
    refused(
        "INVALID_ARGUMENT",
        "PATH_OUTSIDE_ROOTS",
        lambda: visage.train("models/smoke", recipe, utkface_folders=["/proc/../etc"]),
    )


def train(visage: Client, folder: str) -> str:
    recipe = Recipe(
        heads=[Head("age", unit="years")],
        stages=[Stage(epochs=1, image_size_px=64)],
        architecture="RESNET18",
        batch_size=8,
        max_bad_fraction=0.5,
    )
    model = f"models/smoke-{uuid.uuid4().hex[:8]}"
    run = visage.train(model, recipe, utkface_folders=[folder])
    check(run.state in ("QUEUED", "RUNNING"), f"Train starts {run.name}")
    sequence, ended = 0, None
    for event in visage.watch(run.name):
        check(event.sequence > sequence, f"WatchTrainingRun's event {event.sequence}: {type(event.event).__name__}")
        sequence, ended = event.sequence, event.event
    check(isinstance(ended, TrainingRun) and ended.state == "SUCCEEDED", f"the run's end: {ended}")
    assert isinstance(ended, TrainingRun)
    check(any(r.name == run.name for r in visage.runs(model=model)), "TrainingService lists the run")
    check(visage.get_version(ended.version).training_run == run.name, f"{ended.version} was registered")
    visage.load_version(ended.version)
    promoted = visage.set_alias(model, "champion", ended.version)
    check(promoted.aliases.get("champion") == ended.version, "SetModelAlias promotes it")
    return model


def predict(visage: Client, model: str, photo: bytes) -> None:
    answer = visage.predict(photo, model=model)
    check(answer.abstained or bool(answer.predictions), f"Predict answers {dict(answer.predictions)}")
    items = list(visage.predict_many([photo, b"no image", photo], model=model))
    good = [isinstance(item, PredictResult) for item in items]
    check(good == [True, False, True], "StreamPredict keeps the order, and a bad photo fails alone")
    refused(
        "INVALID_ARGUMENT", "IMAGE_FORMAT_UNSUPPORTED", lambda: visage.predict(b"these bytes are no image", model=model)
    )
    refused("NOT_FOUND", "MODEL_VERSION_NOT_FOUND", lambda: visage.predict(photo, model=f"{model}/versions/999999"))


def faces(visage: Client, model: str, photo: bytes) -> None:
    version = visage.get_version(f"{model}@champion")
    space = version.embedding_spaces[0]
    collection = visage.create_collection(f"smoke-{uuid.uuid4().hex[:8]}", embedding_space=space.name)
    try:
        check(collection.embedding_space == space.name, f"CreateCollection makes {collection.name}")
        face = visage.enroll(collection.name, photo, face_id="portrait", subject="policy-1", labels={"source": "smoke"})
        check(visage.get_face(face.name) == face, f"EnrollFace and GetFace agree on {face.name}")
        basis = [[1.0 if i == j else 0.0 for i in range(space.dimensions)] for j in range(2)]
        stored = list(
            visage.enroll_many(collection.name, [EnrollItem(Embedding(v), f"basis-{j}") for j, v in enumerate(basis)])
        )
        check(all(isinstance(f, Face) for f in stored), "StreamEnrollFaces stores vectors")
        names = [f.name.rsplit("/", 1)[-1] for f in visage.faces(collection.name, page_size=1)]
        check(names == ["basis-0", "basis-1", "portrait"], f"ListFaces gives pages in order: {names}")
        check(visage.get_collection(collection.name).n_faces == 3, "GetCollection counts three faces")
        check(collection.name in {c.name for c in visage.collections()}, "ListCollections has it")
        for exact in (False, True):
            found = visage.find_similar(collection.name, photo, k=3, exact=exact)
            best = found.matches[0]
            check(
                best.face.name == face.name and best.score > 0.999, f"FindSimilar (exact={exact}) finds the photo first"
            )
        by_name = visage.find_similar(collection.name, face.name, k=3)
        check(face.name not in {m.face.name for m in by_name.matches}, "a face is not its own neighbour")
        by_vector = visage.find_similar(collection.name, Embedding(basis[1]), k=1)
        check(by_vector.matches[0].face.name.endswith("/basis-1"), "FindSimilar by vector finds that vector")
        visage.delete_face(face.name)
        left = visage.find_similar(collection.name, photo, k=3, exact=True)
        check(face.name not in {m.face.name for m in left.matches}, "a deleted face is not found")
        refused("NOT_FOUND", "FACE_NOT_FOUND", lambda: visage.get_face(face.name))
        refused("INVALID_ARGUMENT", "FIELD_INVALID", lambda: visage.find_similar(collection.name, photo, k=0))
    finally:
        visage.delete_collection(collection.name)
    refused("NOT_FOUND", "COLLECTION_NOT_FOUND", lambda: visage.get_collection(collection.name))


def check(holds: bool, what: str) -> None:
    print(("ok    " if holds else "WRONG ") + what, flush=True)
    if not holds:
        sys.exit(1)


def refused(code: str, reason: str, call: Callable[[], object]) -> None:
    try:
        got = f"an answer: {call()}"
    except VisageError as error:
        got = f"{error.code} {error.reason}"
    check(got == f"{code} {reason}", f"refused with {code} {reason} (got {got})")


if __name__ == "__main__":
    sys.exit(main())
