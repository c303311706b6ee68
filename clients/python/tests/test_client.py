"""The client against a server in this process: pages, streams, and errors with their details."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import _paths  # noqa: F401
import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from visage.v1 import (
    face_service_pb2,
    face_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
    visage_service_pb2,
    visage_service_pb2_grpc,
)

from visage_client import (
    Classification,
    Client,
    Embedding,
    EnrollItem,
    Face,
    Head,
    PredictResult,
    Progress,
    Recipe,
    Regression,
    Stage,
    TrainingRun,
    VisageError,
)


def status(code: grpc.StatusCode, reason: str, message: str, *details: Any) -> status_pb2.Status:
    packed = []
    for detail in [error_details_pb2.ErrorInfo(reason=reason, domain="visage", metadata={"limit": "3"}), *details]:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, error: status_pb2.Status) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", error.SerializeToString()),))
    context.abort(code, error.message)


UNREADABLE = status(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNREADABLE", "the file ends early")


class Visage(visage_service_pb2_grpc.VisageServiceServicer):
    def Predict(self, request: Any, context: Any) -> Any:
        if request.image == b"busy":
            retry = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=250_000_000))
            error = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "the queue is full", retry)
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error)
        if not request.image:
            field = error_details_pb2.BadRequest.FieldViolation(field="image", description="is empty")
            bad = error_details_pb2.BadRequest(field_violations=[field])
            abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                status(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "bad", bad),
            )
        age = prediction_pb2.Regression(value=41.5, lower=35, upper=48, coverage=0.9, unit="years")
        gender = prediction_pb2.Classification(
            label="female",
            probability=0.75,
            classes=[
                prediction_pb2.ClassProbability(label="female", probability=0.75),
                prediction_pb2.ClassProbability(label="male", probability=0.25),
            ],
        )
        return visage_service_pb2.PredictResponse(
            model_version="models/age/versions/1",
            predictions=[
                prediction_pb2.Prediction(head="age", regression=age),
                prediction_pb2.Prediction(head="gender", classification=gender),
            ],
            timing=prediction_pb2.Timing(total=Duration(nanos=5_000_000), batch_size=2),
        )

    def StreamPredict(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for item in requests:
            if item.request.image == b"bad":
                yield visage_service_pb2.StreamPredictResponse(correlation_id=item.correlation_id, error=UNREADABLE)
            else:
                reason = [prediction_pb2.ABSTENTION_REASON_FACE_TOO_SMALL]
                answer = visage_service_pb2.PredictResponse(abstained=True, abstention_reasons=reason)
                yield visage_service_pb2.StreamPredictResponse(correlation_id=item.correlation_id, response=answer)

    def FindSimilar(self, request: Any, context: Any) -> Any:
        kind = request.WhichOneof("query")
        match = visage_service_pb2.SimilarFace(face=face_service_pb2.Face(name=f"by-{kind}"), score=0.5)
        return visage_service_pb2.FindSimilarResponse(matches=[match], exact=request.exact)

    def Train(self, request: Any, context: Any) -> Any:
        from google.longrunning import operations_pb2

        run = training_service_pb2.TrainingRun(
            name="trainingRuns/7", model=request.model, state=training_service_pb2.RUN_STATE_QUEUED
        )
        operation = operations_pb2.Operation(name="operations/7")
        operation.metadata.Pack(run)
        heads = [head.WhichOneof("kind") for head in request.recipe.heads]
        assert heads == ["regression", "classification"], heads
        assert not request.recipe.HasField("dropout") and request.recipe.weight_decay == 0.0
        return operation


class Models(model_service_pb2_grpc.ModelServiceServicer):
    def ListModels(self, request: Any, context: Any) -> Any:
        page = int(request.page_token or "0")
        models = [model_service_pb2.Model(name=f"models/m{page}", aliases={"champion": "v"})]
        return model_service_pb2.ListModelsResponse(models=models, next_page_token=str(page + 1) if page < 2 else "")


class Training(training_service_pb2_grpc.TrainingServiceServicer):
    def WatchTrainingRun(self, request: Any, context: Any) -> Iterator[Any]:
        event = training_service_pb2.WatchTrainingRunResponse
        yield event(sequence=1, state=training_service_pb2.RUN_STATE_RUNNING)
        yield event(sequence=2, progress=training_service_pb2.Progress(step=3, n_steps=9, eta=Duration(seconds=90)))
        error = status(grpc.StatusCode.CANCELLED, "CANCELLED", "by its caller")
        ended = training_service_pb2.TrainingRun(state=training_service_pb2.RUN_STATE_CANCELLED, error=error)
        yield event(sequence=3, ended=ended)


class Faces(face_service_pb2_grpc.FaceServiceServicer):
    def StreamEnrollFaces(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        answer = face_service_pb2.StreamEnrollFacesResponse
        for item in requests:
            if item.request.WhichOneof("source") == "vector":
                yield answer(face=face_service_pb2.Face(name=item.request.face_id, labels=item.request.labels))
            else:
                yield answer(error=UNREADABLE)


class ClientTest(unittest.TestCase):
    def setUp(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        visage_service_pb2_grpc.add_VisageServiceServicer_to_server(Visage(), server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(Training(), server)
        face_service_pb2_grpc.add_FaceServiceServicer_to_server(Faces(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        self.visage = Client(f"127.0.0.1:{port}")
        self.addCleanup(self.visage.close)

    def test_predict_reads_both_kinds_of_head(self) -> None:
        answer = self.visage.predict(b"photo")
        self.assertEqual(answer.predictions["age"], Regression(41.5, "years", 35, 48, 0.9))
        gender = answer.predictions["gender"]
        assert isinstance(gender, Classification)
        self.assertEqual(list(gender.probabilities), ["female", "male"])
        self.assertAlmostEqual(answer.timing.total_s, 0.005)

    def test_errors_carry_reason_and_details(self) -> None:
        with self.assertRaises(VisageError) as caught:
            self.visage.predict(b"busy")
        error = caught.exception
        self.assertEqual((error.code, error.reason), ("RESOURCE_EXHAUSTED", "OVERLOADED"))
        self.assertEqual((error.retry_after_s, error.metadata), (0.25, {"limit": "3"}))
        with self.assertRaisesRegex(VisageError, "FIELD_INVALID.*image: is empty"):
            self.visage.predict(b"")

    def test_a_server_that_is_not_there_is_an_error_without_reason(self) -> None:
        with Client("127.0.0.1:1", timeout_s=5) as nobody, self.assertRaises(VisageError) as caught:
            nobody.predict(b"photo")
        self.assertEqual((caught.exception.code, caught.exception.reason), ("UNAVAILABLE", ""))

    def test_streams_keep_their_order_and_fail_by_item(self) -> None:
        first, second, third = self.visage.predict_many([b"a", b"bad", b"c"])
        assert isinstance(first, PredictResult) and isinstance(second, VisageError) and isinstance(third, PredictResult)
        self.assertEqual(first.abstention_reasons, ["FACE_TOO_SMALL"])
        self.assertEqual(second.reason, "IMAGE_UNREADABLE")
        items = [EnrollItem(Embedding([1.0, 0.0]), "f", labels={"k": "v"}), EnrollItem(b"photo")]
        stored, failed = self.visage.enroll_many("collections/c", items)
        assert isinstance(stored, Face) and isinstance(failed, VisageError)
        self.assertEqual((stored.name, stored.labels), ("f", {"k": "v"}))

    def test_lists_follow_their_pages(self) -> None:
        self.assertEqual([m.name for m in self.visage.models()], ["models/m0", "models/m1", "models/m2"])

    def test_the_query_may_be_a_photo_a_face_or_a_vector(self) -> None:
        queries: list[bytes | str | Embedding] = [b"photo", "collections/c/faces/f", Embedding([1.0])]
        found = [self.visage.find_similar("collections/c", q).matches[0].face.name for q in queries]
        self.assertEqual(found, ["by-image", "by-face", "by-embedding"])

    def test_train_and_watch(self) -> None:
        heads = [Head("age", unit="years"), Head("gender", labels=["female", "male"])]
        run = self.visage.train("models/age", Recipe(heads, [Stage(1, 64)], weight_decay=0.0))
        self.assertEqual((run.name, run.state), ("trainingRuns/7", "QUEUED"))
        events = [e.event for e in self.visage.watch(run.name)]
        self.assertEqual(events[0], "RUNNING")
        assert isinstance(events[1], Progress) and isinstance(events[2], TrainingRun)
        self.assertEqual(events[1].eta_s, 90)
        assert events[2].error is not None
        self.assertEqual((events[2].state, events[2].error.reason), ("CANCELLED", "CANCELLED"))


if __name__ == "__main__":
    unittest.main()
