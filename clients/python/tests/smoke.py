#!/usr/bin/env python3
"""Lists and calls every service of a running server, as a caller in Python would.

    smoke.py 127.0.0.1:50051 --photo portrait.jpg --model models/age --data faces/

Without --model the first model is asked whose champion answers something; on a server that has none, what needs one
is left out and said to be. The calls about faces are made where a model reads them, as with the published weights.
With --data (a folder of UTKFace file names under one of the server's roots) it also trains for one epoch, watches, and
in the end forgets the version again. Exits with 1 at the first thing that is not as it should be.
"""

from __future__ import annotations

import argparse
import struct
import sys
import uuid
import zlib
from pathlib import Path
from typing import Callable

import _paths  # noqa: F401
import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from visage_client import (
    ArgumentError,
    Client,
    Embedding,
    EnrollItem,
    Face,
    FaceReading,
    Head,
    ModelVersion,
    PredictResult,
    Recipe,
    Stage,
    TrainingRun,
    VisageError,
)

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
        trained = train(visage, options.data) if options.data else None
        answering = [version for version in champions(visage) if version.heads]
        if options.model:
            asked: ModelVersion | None = visage.get_version(f"{options.model}@champion")
        else:
            asked = trained or next(iter(answering), None)
        reader = next((version for version in [asked, *answering] if version and reads_faces(version)), None)
        photo = options.photo.read_bytes() if options.photo else b""
        if asked and photo:
            predict(visage, asked, photo)
            faces(visage, asked, photo)
            default_space(visage, photo)
        else:
            print("left out: Predict, FindSimilar and enrolled faces need --photo and a model with a champion")
        if reader and photo:
            faces_in_photos(visage, reader, photo)
            comparison(visage, reader, photo)
        else:
            print("left out: faces in photos need --photo and a model that reads and embeds them")
        if trained:
            forget(visage, trained)
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


def champions(visage: Client) -> list[ModelVersion]:
    return [visage.get_version(f"{m.name}@champion") for m in visage.models() if "champion" in m.aliases]


def model_of(version: ModelVersion) -> str:
    return version.name.split("/versions/")[0]


def reads_faces(version: ModelVersion) -> bool:
    return bool(version.heads and version.face_reader and version.face_reader.embedder)


def space_of(visage: Client, version: ModelVersion) -> str:
    """The space that a collection gets where only the version is named: the one it is paired with, or its own first."""
    paired = version.face_reader.embedder if version.face_reader else ""
    return (visage.get_version(paired) if paired else version).embedding_spaces[0].name


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
    refused(
        "INVALID_ARGUMENT",
        "PATH_OUTSIDE_ROOTS",
        lambda: visage.import_version("models/smoke", "/proc/../etc/passwd", architecture="MTCNN"),
    )
    refused("NOT_FOUND", "MODEL_NOT_FOUND", lambda: visage.delete_version("models/no-such-model/versions/1"))


def train(visage: Client, folder: str) -> ModelVersion:
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
    version = visage.get_version(ended.version)
    check(version.training_run == run.name, f"{ended.version} was registered")
    check(version.face_reader is None, "a version that is trained here reads whole photos")
    visage.load_version(ended.version)
    promoted = visage.set_alias(model, "champion", ended.version)
    check(promoted.aliases.get("champion") == ended.version, "SetModelAlias promotes it")
    return version


def forget(visage: Client, version: ModelVersion) -> None:
    refused("FAILED_PRECONDITION", "IN_USE", lambda: visage.delete_version(version.name))
    visage.set_alias(model_of(version), "champion", "", expected_version=version.name)
    visage.delete_version(version.name)
    refused("NOT_FOUND", "MODEL_VERSION_NOT_FOUND", lambda: visage.get_version(version.name))


def predict(visage: Client, version: ModelVersion, photo: bytes) -> None:
    model = model_of(version)
    answer = visage.predict(photo, model=model)
    check(answer.abstained or bool(answer.predictions), f"Predict answers {dict(answer.predictions)}")
    items = list(visage.predict_many([photo, b"no image", photo], model=model))
    good = [isinstance(item, PredictResult) for item in items]
    check(good == [True, False, True], "StreamPredict keeps the order, and a bad photo fails alone")
    refused(
        "INVALID_ARGUMENT", "IMAGE_FORMAT_UNSUPPORTED", lambda: visage.predict(b"these bytes are no image", model=model)
    )
    refused("NOT_FOUND", "MODEL_VERSION_NOT_FOUND", lambda: visage.predict(photo, model=f"{model}/versions/999999"))


def faces(visage: Client, version: ModelVersion, photo: bytes) -> None:
    space = space_of(visage, version)
    collection = visage.create_collection(f"smoke-{uuid.uuid4().hex[:8]}", embedding_space=version.name)
    try:
        check(collection.embedding_space == space, f"CreateCollection makes {collection.name} in {space}")
        face = visage.enroll(collection.name, photo, face_id="portrait", subject="policy-1", labels={"source": "smoke"})
        check(visage.get_face(face.name) == face, f"EnrollFace and GetFace agree on {face.name}")
        basis = [[1.0 if i == j else 0.0 for i in range(collection.dimensions)] for j in range(2)]
        stored = list(
            visage.enroll_many(collection.name, [EnrollItem(Embedding(v), f"basis-{j}") for j, v in enumerate(basis)])
        )
        check(all(isinstance(f, Face) for f in stored), "StreamEnrollFaces stores vectors")
        names = [f.name.rsplit("/", 1)[-1] for f in visage.faces(collection.name, page_size=1)]
        # The faces of a stream are enrolled beside one another.
        in_order = names[:1] == ["portrait"] and sorted(names[1:]) == ["basis-0", "basis-1"]
        check(in_order, f"ListFaces gives pages in the order of enrolment: {names}")
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
        check(visage.delete_faces("nobody") == 0, "DeleteFaces counts what it deletes")
        refused("INVALID_ARGUMENT", "FIELD_INVALID", lambda: visage.delete_faces(""))
        refused("INVALID_ARGUMENT", "FIELD_INVALID", lambda: visage.find_similar(collection.name, photo, k=0))
    finally:
        visage.delete_collection(collection.name)
    refused("NOT_FOUND", "COLLECTION_NOT_FOUND", lambda: visage.get_collection(collection.name))


def default_space(visage: Client, photo: bytes) -> None:
    try:
        answered = visage.predict(photo).model_version
    except VisageError as error:
        if "model" not in error.field_violations:
            raise
        print("left out: a collection in the default space needs a default model")
        return
    collection = visage.create_collection(f"smoke-{uuid.uuid4().hex[:8]}")
    try:
        space = space_of(visage, visage.get_version(answered))
        check(collection.embedding_space == space, f"without a space CreateCollection takes {space}")
    finally:
        visage.delete_collection(collection.name)


def faces_in_photos(visage: Client, version: ModelVersion, photo: bytes) -> None:
    """What Predict finds in a photo of one face, and in one of none."""
    model = model_of(version)
    answer = visage.predict(photo, model=model, face_selection="all", return_embedding=True)
    check(1 <= len(answer.faces) <= answer.n_faces_found, f"Predict finds {answer.n_faces_found} faces")
    first = answer.faces[0]
    box = first.box
    check(box.left < box.right and box.top < box.bottom, f"the largest at {box}")
    check(len(first.landmarks) == 5, f"it has five landmarks: {first.landmarks}")
    check("face_px" in first.quality and "brightness" in first.quality, f"its quality: {dict(first.quality)}")
    check(not first.abstained, f"it is answered (reasons: {first.abstention_reasons})")
    check(sorted(first.predictions) == sorted(version.heads), f"every head answers: {dict(first.predictions)}")
    check(answer.predictions == first.predictions, "the photo's answers are those of the largest face")
    space = space_of(visage, version)
    dimensions = {s.name: s.dimensions for s in visage.get_version(space.split("#")[0]).embedding_spaces}[space]
    embedding = first.embedding
    got = (embedding.space, len(embedding.values)) if embedding else None
    check(got == (space, dimensions), f"its embedding has {dimensions} numbers of {space} (got {got})")

    largest = visage.predict(photo, model=model)
    check([f.box for f in largest.faces] == [box], "the largest is read unless told otherwise")
    check(largest.faces[0].embedding is None, "an embedding comes only if asked for")
    single = visage.predict(photo, model=model, face_selection="single")
    reasons = ["SEVERAL_FACES"] if answer.n_faces_found > 1 else []
    check(single.abstention_reasons == reasons, f"as the single face: {list(single.abstention_reasons)}")

    brighter = {"min_brightness": min(first.quality["brightness"] + 0.001, 1.0)}
    dark = visage.predict(photo, model=model, thresholds=brighter)
    said = (dark.abstained, list(dark.abstention_reasons), dict(dark.predictions))
    check(said == (True, ["BADLY_EXPOSED"], {}), f"a threshold that it misses stops the answer: {said}")
    beyond, unknown = {"min_detection": 2.0}, {"min_beauty": 0.5}
    refused("INVALID_ARGUMENT", "FIELD_INVALID", lambda: visage.predict(photo, model=model, thresholds=beyond))
    refused(
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
        lambda: visage.predict(photo, model=model, thresholds=unknown),
        kind=ArgumentError,
    )

    streamed = visage.predict_many([photo, blank()], model=model, face_selection="all", thresholds=brighter)
    told = [list(item.abstention_reasons) for item in streamed if isinstance(item, PredictResult)]
    check([reasons[:1] for reasons in told] == [["BADLY_EXPOSED"], ["NO_FACE"]], f"StreamPredict, too: {told}")


def comparison(visage: Client, version: ModelVersion, photo: bytes) -> None:
    """What scores say about identity, and what a photo without a face is good for."""
    space = space_of(visage, version)
    same = visage.compare_faces(photo, photo, embedding_space=version.name)
    check(same.embedding_space == space, f"CompareFaces compares in {space}")
    check(same.score is not None and same.score > 0.999, f"a photo is itself: {same.score}")
    shown = [isinstance(face, FaceReading) and not face.predictions for face in (same.first_face, same.second_face)]
    check(shown == [True, True], "both faces are shown, without predictions")
    none = visage.compare_faces(photo, blank(), embedding_space=version.name)
    said = (none.score, list(none.abstention_reasons), none.second_face)
    check(said == (None, ["NO_FACE"], None), f"a wall is nobody: {said}")

    collection = visage.create_collection(f"smoke-{uuid.uuid4().hex[:8]}", embedding_space=version.name)
    try:
        enrolled = visage.enroll(collection.name, photo, face_id="portrait")
        match = visage.find_similar(collection.name, photo, k=1).matches[0]
        check(match.face == enrolled, "FindSimilar finds the face of the photo")
        calibration = visage.get_version(space.split("#")[0]).identity_calibration
        if calibration is None:
            check(match.identity is None and same.identity is None, "no evidence where nothing was calibrated")
        else:
            check(calibration.n_people > 0 and bool(calibration.false_matches), f"calibrated on {calibration.sample}")
            for evidence in (same.identity, match.identity):
                assert evidence is not None
                check(0.5 < evidence.same_person_probability <= 1, f"the same person: {evidence}")
                rate = evidence.false_match_rate
                check(0 <= rate.lower <= rate.upper < 0.5, f"a false match is rare (supported: {rate.supported})")
                check(rate.rate is None or rate.lower <= rate.rate <= rate.upper, "its bounds hold the rate")
        refused("INVALID_ARGUMENT", "FACE_UNUSABLE", lambda: visage.enroll(collection.name, blank()))
        refused("INVALID_ARGUMENT", "FACE_UNUSABLE", lambda: visage.find_similar(collection.name, blank()))
    finally:
        visage.delete_collection(collection.name)


def blank() -> bytes:
    """A grey PNG of 64 by 64 pixels: a photo of nobody."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x80" * 64) * 64)
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def check(holds: bool, what: str) -> None:
    print(("ok    " if holds else "WRONG ") + what, flush=True)
    if not holds:
        sys.exit(1)


def refused(code: str, reason: str, call: Callable[[], object], kind: type[VisageError] = VisageError) -> None:
    try:
        got = f"an answer: {call()}"
    except kind as error:
        got = f"{error.code} {error.reason}"
    check(got == f"{code} {reason}", f"refused with {code} {reason} (got {got})")


if __name__ == "__main__":
    sys.exit(main())
