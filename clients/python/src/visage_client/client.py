"""The client: one method a call, deadlines on all, pages and streams as iterators."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Callable

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from visage.v1 import (
    face_service_pb2,
    face_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    recipe_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
    visage_service_pb2,
    visage_service_pb2_grpc,
)

from visage_client.errors import VisageError
from visage_client.readings import (
    Embedding,
    FaceSelection,
    OneFace,
    PredictResult,
    selection_to_proto,
    thresholds_to_proto,
)
from visage_client.types import (
    Collection,
    Comparison,
    EnrollItem,
    Face,
    Head,
    Model,
    ModelVersion,
    Recipe,
    SimilarResult,
    TrainingRun,
    WatchEvent,
)


class Client:
    """A connection to one server. Safe to share between threads; close it, or use it in a `with`."""

    def __init__(self, target: str, *, timeout_s: float = 30.0, channel: grpc.Channel | None = None) -> None:
        """Connects to `target` ("host:port"), or uses a `channel` that was made with TLS or interceptors.

        `timeout_s` is the deadline of every call that ends by itself; streams have none.
        """
        self._channel = channel or grpc.insecure_channel(target)
        self._timeout_s = timeout_s
        self._visage = visage_service_pb2_grpc.VisageServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._training = training_service_pb2_grpc.TrainingServiceStub(self._channel)
        self._faces = face_service_pb2_grpc.FaceServiceStub(self._channel)
        self._operations = operations_pb2_grpc.OperationsStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    # Predict

    def predict(
        self,
        image: bytes,
        *,
        model: str = "",
        heads: Sequence[str] = (),
        face_selection: FaceSelection = "largest",
        return_embedding: bool = False,
        thresholds: Mapping[str, float] | None = None,
    ) -> PredictResult:
        """Reads one photo (a JPEG, PNG or WebP file's bytes). Without `model`: the server's default.

        The rest is for versions that read faces: which of them, whether each comes with its embedding, and `thresholds`
        of quality in place of the version's own, one by one. Their names, units and ranges are those of
        QualityThresholds in face.proto, such as "min_face_px"; another name is an `ArgumentError`. A version
        that is paired with no embedding refuses `return_embedding` with UNSUPPORTED_BY_MODEL; `face_selection` and
        `thresholds` have no effect on one that reads whole photos.
        """
        request = _predict_request(model, heads, face_selection, return_embedding, thresholds)
        request.image = image
        return PredictResult.from_proto(self._call(self._visage.Predict, request))

    def predict_many(
        self,
        images: Iterable[bytes],
        *,
        model: str = "",
        heads: Sequence[str] = (),
        face_selection: FaceSelection = "largest",
        return_embedding: bool = False,
        thresholds: Mapping[str, float] | None = None,
    ) -> Iterator[PredictResult | VisageError]:
        """Reads photos over one stream, all as `predict` reads one.

        Answers come in order; an unreadable photo is an error in its place.
        """
        # Made once and here, so that a wrong argument fails this call and not the stream.
        template = _predict_request(model, heads, face_selection, return_embedding, thresholds)

        def item(correlation_id: int, image: bytes) -> visage_service_pb2.StreamPredictRequest:
            request = visage_service_pb2.StreamPredictRequest(request=template, correlation_id=str(correlation_id))
            request.request.image = image
            return request

        requests = (item(i, image) for i, image in enumerate(images))
        return map(_predict_item, self._stream(self._visage.StreamPredict, requests))

    # Similar faces

    def create_collection(
        self, collection_id: str, *, embedding_space: str = "", display_name: str = "", request_id: str | None = None
    ) -> Collection:
        """Makes a collection that compares in one embedding space, for ever.

        `embedding_space` is models/{model}/versions/{n}#{layer}, or models/{model}@{alias}#{layer}, which is resolved
        now. Without #{layer} it is the space that the version is paired with, or else its own first; without anything,
        the same of the default model's champion. With the published weights that is the face descriptor's space, in
        which the largest face of a photo is compared.
        """
        request = face_service_pb2.CreateCollectionRequest(
            collection_id=collection_id,
            embedding_space=embedding_space,
            display_name=display_name,
            request_id=request_id or str(uuid.uuid4()),
        )
        return Collection.from_proto(self._call(self._faces.CreateCollection, request))

    def get_collection(self, name: str) -> Collection:
        """A collection by name."""
        request = face_service_pb2.GetCollectionRequest(name=name)
        return Collection.from_proto(self._call(self._faces.GetCollection, request))

    def collections(self, *, page_size: int = 0) -> Iterator[Collection]:
        """All collections."""
        request = face_service_pb2.ListCollectionsRequest(page_size=page_size)
        return map(Collection.from_proto, self._pages(self._faces.ListCollections, request, "collections"))

    def delete_collection(self, name: str) -> None:
        """Forgets a collection with all its faces."""
        self._call(self._faces.DeleteCollection, face_service_pb2.DeleteCollectionRequest(name=name))

    def enroll(
        self,
        collection: str,
        source: bytes | Embedding,
        *,
        face_id: str = "",
        subject: str = "",
        labels: Mapping[str, str] | None = None,
        face_selection: OneFace = "largest",
        request_id: str | None = None,
    ) -> Face:
        """Stores a face: of a photo (bytes) the one that `face_selection` says, or a vector.

        A photo without a usable face fails with FACE_UNUSABLE; the error's metadata says why. With the same
        `request_id` it can be called again safely after a broken connection.
        """
        item = EnrollItem(source, face_id, subject, labels or {}, face_selection)
        request = _enroll_request(collection, item, request_id or str(uuid.uuid4()))
        return Face.from_proto(self._call(self._faces.EnrollFace, request))

    def enroll_many(self, collection: str, items: Iterable[EnrollItem]) -> Iterator[Face | VisageError]:
        """Stores faces over one stream. Answers come in order; a bad photo is an error in its place."""
        requests = (
            face_service_pb2.StreamEnrollFacesRequest(
                request=_enroll_request(collection, item, str(uuid.uuid4())), correlation_id=str(i)
            )
            for i, item in enumerate(items)
        )
        for answer in self._stream(self._faces.StreamEnrollFaces, requests):
            failed = answer.WhichOneof("result") == "error"
            yield VisageError.from_status(answer.error) if failed else Face.from_proto(answer.face)

    def get_face(self, name: str) -> Face:
        """A face by name."""
        return Face.from_proto(self._call(self._faces.GetFace, face_service_pb2.GetFaceRequest(name=name)))

    def faces(self, collection: str, *, page_size: int = 0) -> Iterator[Face]:
        """A collection's faces in the order of their enrolment."""
        request = face_service_pb2.ListFacesRequest(parent=collection, page_size=page_size)
        return map(Face.from_proto, self._pages(self._faces.ListFaces, request, "faces"))

    def delete_face(self, name: str) -> None:
        """Forgets a face: it is never returned again."""
        self._call(self._faces.DeleteFace, face_service_pb2.DeleteFaceRequest(name=name))

    def delete_faces(self, subject: str, collection: str = "collections/-") -> int:
        """Forgets every face of a subject, in one collection or in all; returns their number."""
        request = face_service_pb2.DeleteFacesRequest(parent=collection, subject=subject)
        return int(self._call(self._faces.DeleteFaces, request).n_deleted)

    def find_similar(
        self,
        collection: str,
        query: bytes | str | Embedding,
        *,
        k: int = 10,
        min_score: float | None = None,
        exact: bool = False,
        face_selection: OneFace = "largest",
    ) -> SimilarResult:
        """The nearest faces to a photo (bytes), to an enrolled face (its name) or to a vector.

        At most `k`, best first, none below the cosine `min_score` (-1 to 1); `exact` compares with every face. Of a
        photo, `face_selection` says which face is looked for; without a usable one it fails with FACE_UNUSABLE.
        """
        request = visage_service_pb2.FindSimilarRequest(
            collection=collection,
            k=k,
            min_score=min_score,
            exact=exact,
            face_selection=selection_to_proto(face_selection),
        )
        if isinstance(query, bytes):
            request.image = query
        elif isinstance(query, str):
            request.face = query
        else:
            request.embedding.values.extend(query.values)
            request.embedding.space = query.space
        return SimilarResult.from_proto(self._call(self._visage.FindSimilar, request))

    def compare_faces(
        self, first: bytes, second: bytes, *, embedding_space: str = "", face_selection: OneFace = "largest"
    ) -> Comparison:
        """Whether two photos show the same person. Nothing is stored.

        `embedding_space` is as `create_collection` takes it; `face_selection` holds for both photos. A photo without
        a usable face is an answer: `abstained`, with its reasons.
        """
        request = face_service_pb2.CompareFacesRequest(
            first_image=first,
            second_image=second,
            embedding_space=embedding_space,
            face_selection=selection_to_proto(face_selection),
        )
        return Comparison.from_proto(self._call(self._faces.CompareFaces, request))

    # Train

    def train(
        self,
        model: str,
        recipe: Recipe,
        *,
        utkface_folders: Sequence[str] = (),
        csv_tables: Sequence[str] = (),
        request_id: str | None = None,
    ) -> TrainingRun:
        """Starts a run on folders and tables of the server's machine, and returns at once; see `watch`."""
        sources = [recipe_pb2.DataSource(utkface=recipe_pb2.UtkFaceFolder(path=path)) for path in utkface_folders]
        sources += [recipe_pb2.DataSource(csv=recipe_pb2.CsvTable(path=path)) for path in csv_tables]
        request = visage_service_pb2.TrainRequest(
            model=model, recipe=recipe.to_proto(), sources=sources, request_id=request_id or str(uuid.uuid4())
        )
        operation = self._call(self._visage.Train, request)
        run = training_service_pb2.TrainingRun()
        operation.metadata.Unpack(run)
        return TrainingRun.from_proto(run)

    def watch(self, run: str, *, after_sequence: int = 0) -> Iterator[WatchEvent]:
        """A run's events so far, then as they happen, until it ends."""
        request = training_service_pb2.WatchTrainingRunRequest(name=run, after_sequence=after_sequence)
        return map(WatchEvent.from_proto, self._stream(self._training.WatchTrainingRun, request))

    def cancel(self, run: str) -> None:
        """Asks a run to stop."""
        name = f"operations/{run.rsplit('/', 1)[-1]}"
        self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    def get_run(self, name: str) -> TrainingRun:
        """A run by name."""
        request = training_service_pb2.GetTrainingRunRequest(name=name)
        return TrainingRun.from_proto(self._call(self._training.GetTrainingRun, request))

    def runs(self, *, model: str = "", page_size: int = 0) -> Iterator[TrainingRun]:
        """Runs, newest first."""
        request = training_service_pb2.ListTrainingRunsRequest(model=model, page_size=page_size)
        return map(TrainingRun.from_proto, self._pages(self._training.ListTrainingRuns, request, "training_runs"))

    # Models

    def models(self, *, page_size: int = 0) -> Iterator[Model]:
        """All models."""
        request = model_service_pb2.ListModelsRequest(page_size=page_size)
        return map(Model.from_proto, self._pages(self._models.ListModels, request, "models"))

    def get_model(self, name: str) -> Model:
        """A model by name."""
        return Model.from_proto(self._call(self._models.GetModel, model_service_pb2.GetModelRequest(name=name)))

    def versions(self, model: str, *, page_size: int = 0) -> Iterator[ModelVersion]:
        """A model's versions, newest first."""
        request = model_service_pb2.ListModelVersionsRequest(parent=model, page_size=page_size)
        return map(ModelVersion.from_proto, self._pages(self._models.ListModelVersions, request, "model_versions"))

    def get_version(self, name: str) -> ModelVersion:
        """A version by number or alias: models/{model}/versions/{n} or models/{model}@{alias}."""
        request = model_service_pb2.GetModelVersionRequest(name=name)
        return ModelVersion.from_proto(self._call(self._models.GetModelVersion, request))

    def import_version(
        self,
        model: str,
        weights_path: str,
        *,
        architecture: str,
        heads: Sequence[Head] = (),
        image_size_px: int = 0,
        detector: str = "",
        embedder: str = "",
        licence: str = "",
        source: str = "",
        request_id: str | None = None,
    ) -> ModelVersion:
        """Registers weights on the server's machine, below one of its roots, as a version. `model` is made if need be.

        A "RESNET18", "RESNET34" or "RESNET50" needs `heads`, in the order of the weights and with their labels, and
        `image_size_px`, the side of its square input; "MTCNN", "DLIB_AGE_GENDER" and "DLIB_FACE_DESCRIPTOR" bring both.
        The last two need a `detector`, the version or alias that finds the faces; the age and gender may be paired with
        the embedding of an `embedder`. `licence` is an SPDX expression, `source` says where the weights come from.
        """
        request = model_service_pb2.ImportModelVersionRequest(
            parent=model,
            weights_path=weights_path,
            architecture=f"ARCHITECTURE_{architecture}",
            heads=[head.to_proto() for head in heads],
            image_size_px=image_size_px,
            detector=detector,
            embedder=embedder,
            licence=licence,
            source=source,
            request_id=request_id or str(uuid.uuid4()),
        )
        return ModelVersion.from_proto(self._call(self._models.ImportModelVersion, request))

    def set_alias(self, model: str, alias: str, version: str, *, expected_version: str | None = None) -> Model:
        """Promotes or rolls back. With `expected_version`, fails with ALIAS_MOVED if the alias is elsewhere."""
        request = model_service_pb2.SetModelAliasRequest(
            name=model, alias=alias, version=version, expected_version=expected_version, request_id=str(uuid.uuid4())
        )
        return Model.from_proto(self._call(self._models.SetModelAlias, request))

    def load_version(self, name: str) -> ModelVersion:
        """Loads a version ahead of its first call."""
        request = model_service_pb2.LoadModelVersionRequest(name=name)
        return ModelVersion.from_proto(self._call(self._models.LoadModelVersion, request))

    def unload_version(self, name: str) -> ModelVersion:
        """Frees a version's memory."""
        request = model_service_pb2.UnloadModelVersionRequest(name=name)
        return ModelVersion.from_proto(self._call(self._models.UnloadModelVersion, request))

    def delete_version(self, name: str) -> None:
        """Forgets a version and its weights. Fails with IN_USE while an alias, a collection or a version uses it."""
        self._call(self._models.DeleteModelVersion, model_service_pb2.DeleteModelVersionRequest(name=name))

    # The three ways of calling

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise VisageError.from_rpc(error) from error

    def _stream(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        answers = method(request)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise VisageError.from_rpc(error) from error
        finally:
            # A caller who stops early ends the call on the server too.
            answers.cancel()

    def _pages(self, method: Callable[..., Any], request: Any, items: str) -> Iterator[Any]:
        while True:
            page = self._call(method, request)
            yield from getattr(page, items)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _predict_request(
    model: str,
    heads: Sequence[str],
    face_selection: FaceSelection,
    return_embedding: bool,
    thresholds: Mapping[str, float] | None,
) -> visage_service_pb2.PredictRequest:
    return visage_service_pb2.PredictRequest(
        model=model,
        heads=heads,
        face_selection=selection_to_proto(face_selection),
        return_embedding=return_embedding,
        thresholds=thresholds_to_proto(thresholds) if thresholds else None,
    )


def _predict_item(item: visage_service_pb2.StreamPredictResponse) -> PredictResult | VisageError:
    failed = item.WhichOneof("result") == "error"
    return VisageError.from_status(item.error) if failed else PredictResult.from_proto(item.response)


def _enroll_request(collection: str, item: EnrollItem, request_id: str) -> face_service_pb2.EnrollFaceRequest:
    request = face_service_pb2.EnrollFaceRequest(
        parent=collection,
        face_id=item.face_id,
        subject=item.subject,
        labels=item.labels,
        request_id=request_id,
        face_selection=selection_to_proto(item.face_selection),
    )
    if isinstance(item.source, bytes):
        request.image = item.source
    else:
        request.vector.values.extend(item.source.values)
        request.vector.space = item.source.space
    return request
