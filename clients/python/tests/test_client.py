"""The client against a server in this process: pages, streams, and errors with their details."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Callable

import _paths  # noqa: F401
import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.rpc import error_details_pb2, status_pb2
from visage.v1 import (
    face_pb2,
    face_service_pb2,
    face_service_pb2_grpc,
    identity_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_pb2,
    recipe_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
    visage_service_pb2,
    visage_service_pb2_grpc,
)

from visage_client import (
    ArgumentError,
    BoundingBox,
    Classification,
    Client,
    Embedding,
    EnrollItem,
    Face,
    FaceReading,
    FalseMatchPoint,
    FalseMatchRate,
    Head,
    IdentityEvidence,
    Point,
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

FACE = face_pb2.FaceReading(
    box=face_pb2.BoundingBox(left=-2, top=8, right=100, bottom=120),
    landmarks=[face_pb2.Point(x=30, y=40), face_pb2.Point(x=70, y=41)],
    quality={"face_px": 102.0, "sharpness": 0.5},
    predictions=[prediction_pb2.Prediction(head="age", regression=prediction_pb2.Regression(value=30, unit="years"))],
    embedding=face_pb2.Embedding(values=[0.5, -0.5], space="models/d/versions/1#l"),
)
BLURRED = face_pb2.FaceReading(
    box=face_pb2.BoundingBox(right=40, bottom=50),
    abstained=True,
    abstention_reasons=[prediction_pb2.ABSTENTION_REASON_BLURRED, prediction_pb2.ABSTENTION_REASON_TURNED_AWAY],
    upside_down=True,
)
# One rate that the sample supports, and one that no pair of it reached.
SEEN = identity_pb2.FalseMatchRate(rate=0.25, lower=0.125, upper=0.5, supported=True)
UNSEEN = identity_pb2.FalseMatchRate(upper=0.0625)


class Visage(visage_service_pb2_grpc.VisageServiceServicer):
    def Predict(self, request: Any, context: Any) -> Any:
        self.asked = request
        if request.image == b"crowd":
            timing = prediction_pb2.Timing(detection=Duration(nanos=250_000_000), alignment=Duration())
            return visage_service_pb2.PredictResponse(
                predictions=FACE.predictions,
                faces=[FACE, BLURRED],
                n_faces_found=3,
                timing=timing,
                photo_notes=[prediction_pb2.PHOTO_NOTE_END_MISSING],
            )
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
        self.streamed = []
        for item in requests:
            self.streamed.append(item.request)
            if item.request.image == b"bad":
                yield visage_service_pb2.StreamPredictResponse(correlation_id=item.correlation_id, error=UNREADABLE)
            else:
                reason = [prediction_pb2.ABSTENTION_REASON_FACE_TOO_SMALL]
                answer = visage_service_pb2.PredictResponse(abstained=True, abstention_reasons=reason)
                yield visage_service_pb2.StreamPredictResponse(correlation_id=item.correlation_id, response=answer)

    def FindSimilar(self, request: Any, context: Any) -> Any:
        kind = request.WhichOneof("query")
        self.sought = request
        match = visage_service_pb2.SimilarFace(face=face_service_pb2.Face(name=f"by-{kind}"), score=0.5)
        if kind == "image":
            match.identity.same_person_probability = 0.75
            match.identity.false_match_rate.CopyFrom(UNSEEN)
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

    def GetModelVersion(self, request: Any, context: Any) -> Any:
        if request.name == "models/photos@champion":
            return model_service_pb2.ModelVersion(name="models/photos/versions/1")
        return model_service_pb2.ModelVersion(
            name="models/face/versions/1",
            architecture=recipe_pb2.ARCHITECTURE_DLIB_AGE_GENDER,
            provenance=model_service_pb2.Provenance(licence="CC0-1.0", source="a page"),
            face_reader=model_service_pb2.FaceReader(
                detector="models/mtcnn/versions/1",
                embedder="models/d/versions/1",
                thresholds=face_pb2.QualityThresholds(min_face_px=32, min_symmetry=0),
            ),
            identity_calibration=identity_pb2.IdentityCalibration(
                intercept=-2,
                slope=4,
                intercept_lower=-3,
                intercept_upper=-1,
                slope_lower=3,
                slope_upper=5,
                n_people=6,
                n_genuine_pairs=7,
                n_impostor_pairs=8,
                false_matches=[identity_pb2.FalseMatchPoint(score=0.5, rate=0.25, lower=0.125, upper=0.375)],
                n_false_match_photos=9,
                n_false_match_pairs=10,
                sample="photos of a club",
            ),
        )

    def ImportModelVersion(self, request: Any, context: Any) -> Any:
        self.imported = request
        return model_service_pb2.ModelVersion(name=f"{request.parent}/versions/2", architecture=request.architecture)

    def DeleteModelVersion(self, request: Any, context: Any) -> Any:
        self.deleted = request.name
        return Empty()


class Training(training_service_pb2_grpc.TrainingServiceServicer):
    def WatchTrainingRun(self, request: Any, context: Any) -> Iterator[Any]:
        event = training_service_pb2.WatchTrainingRunResponse
        yield event(sequence=1, state=training_service_pb2.RUN_STATE_RUNNING)
        yield event(sequence=2, progress=training_service_pb2.Progress(step=3, n_steps=9, eta=Duration(seconds=90)))
        error = status(grpc.StatusCode.CANCELLED, "CANCELLED", "by its caller")
        ended = training_service_pb2.TrainingRun(state=training_service_pb2.RUN_STATE_CANCELLED, error=error)
        yield event(sequence=3, ended=ended)


class Faces(face_service_pb2_grpc.FaceServiceServicer):
    def CreateCollection(self, request: Any, context: Any) -> Any:
        space = request.embedding_space or "models/d/versions/1#l"
        return face_service_pb2.Collection(name=f"collections/{request.collection_id}", embedding_space=space)

    def EnrollFace(self, request: Any, context: Any) -> Any:
        self.enrolled = request
        return face_service_pb2.Face(name=f"{request.parent}/faces/{request.face_id}")

    def CompareFaces(self, request: Any, context: Any) -> Any:
        self.compared = request
        if request.second_image == b"wall":
            reasons = [prediction_pb2.ABSTENTION_REASON_NO_FACE]
            return face_service_pb2.CompareFacesResponse(first_face=FACE, abstained=True, abstention_reasons=reasons)
        return face_service_pb2.CompareFacesResponse(
            score=0.0,
            identity=identity_pb2.IdentityEvidence(same_person_probability=0.125, false_match_rate=SEEN),
            embedding_space="models/d/versions/1#l",
            first_face=FACE,
            second_face=BLURRED,
            second_photo_notes=[prediction_pb2.PHOTO_NOTE_COLOURS_UNSURE],
        )

    def StreamEnrollFaces(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        answer = face_service_pb2.StreamEnrollFacesResponse
        self.selections = []
        for item in requests:
            self.selections.append(item.request.face_selection)
            if item.request.WhichOneof("source") == "vector":
                yield answer(face=face_service_pb2.Face(name=item.request.face_id, labels=item.request.labels))
            else:
                yield answer(error=UNREADABLE)


class ClientTest(unittest.TestCase):
    def setUp(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        self.calls, self.models, self.faces = Visage(), Models(), Faces()
        visage_service_pb2_grpc.add_VisageServiceServicer_to_server(self.calls, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self.models, server)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(Training(), server)
        face_service_pb2_grpc.add_FaceServiceServicer_to_server(self.faces, server)
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

    def test_a_whole_photo_has_no_faces(self) -> None:
        answer = self.visage.predict(b"photo")
        self.assertEqual((answer.faces, answer.n_faces_found), ([], 0))
        timing = answer.timing
        self.assertEqual((timing.detection_s, timing.alignment_s, timing.embedding_s), (None, None, None))
        self.assertEqual(self.calls.asked.face_selection, face_pb2.FACE_SELECTION_LARGEST)
        self.assertFalse(self.calls.asked.return_embedding)
        self.assertFalse(self.calls.asked.HasField("thresholds"))

    def test_faces_are_asked_for_and_read(self) -> None:
        asked = {"min_face_px": 64.0, "max_spread": 0.0}
        answer = self.visage.predict(b"crowd", face_selection="all", return_embedding=True, thresholds=asked)
        request = self.calls.asked
        self.assertEqual(request.face_selection, face_pb2.FACE_SELECTION_ALL)
        self.assertTrue(request.return_embedding)
        # A threshold of 0 is set, and one that was not named is absent.
        self.assertEqual({field.name: value for field, value in request.thresholds.ListFields()}, asked)
        self.assertEqual(answer.n_faces_found, 3)
        age = Regression(30, "years", None, None, None)
        first = FaceReading(
            box=BoundingBox(-2, 8, 100, 120),
            landmarks=[Point(30, 40), Point(70, 41)],
            quality={"face_px": 102.0, "sharpness": 0.5},
            predictions={"age": age},
            abstained=False,
            abstention_reasons=[],
            embedding=Embedding([0.5, -0.5], "models/d/versions/1#l"),
            upside_down=False,
        )
        second = FaceReading(BoundingBox(0, 0, 40, 50), [], {}, {}, True, ["BLURRED", "TURNED_AWAY"], None, True)
        self.assertEqual(answer.faces, [first, second])
        self.assertEqual(answer.photo_notes, ["END_MISSING"])
        timing = answer.timing
        self.assertEqual((timing.detection_s, timing.alignment_s, timing.embedding_s), (0.25, 0.0, None))

    def test_the_stream_asks_for_faces_with_every_photo(self) -> None:
        photos = [b"a", b"bad"]
        answers = self.visage.predict_many(
            photos, model="models/m", face_selection="single", return_embedding=True, thresholds={"min_contrast": 0.25}
        )
        self.assertEqual(len(list(answers)), 2)
        self.assertEqual([r.image for r in self.calls.streamed], photos)
        for request in self.calls.streamed:
            self.assertEqual((request.model, request.return_embedding), ("models/m", True))
            self.assertEqual(request.face_selection, face_pb2.FACE_SELECTION_SINGLE)
            self.assertEqual(request.thresholds.min_contrast, 0.25)

    def test_an_argument_that_the_contract_lacks_is_refused_before_the_call(self) -> None:
        nearest: Any = "nearest"
        wrong: list[tuple[str, Callable[[], object]]] = [
            ("thresholds.min_sharpnes", lambda: self.visage.predict(b"photo", thresholds={"min_sharpnes": 0.5})),
            ("thresholds.face_px", lambda: self.visage.predict_many([b"photo"], thresholds={"face_px": 32})),
            ("face_selection", lambda: self.visage.predict(b"photo", face_selection=nearest)),
            ("face_selection", lambda: self.visage.predict_many([b"photo"], face_selection=nearest)),
            ("face_selection", lambda: self.visage.find_similar("collections/c", b"p", face_selection=nearest)),
            ("face_selection", lambda: self.visage.enroll("collections/c", b"photo", face_selection=nearest)),
            ("face_selection", lambda: self.visage.compare_faces(b"a", b"b", face_selection=nearest)),
            ("face_selection", lambda: EnrollItem(b"photo", face_selection=nearest)),
        ]
        for field, call in wrong:
            with self.subTest(field), self.assertRaises(ArgumentError) as caught:
                call()
            error = caught.exception
            assert isinstance(error, VisageError)
            self.assertEqual((error.code, error.reason), ("INVALID_ARGUMENT", "FIELD_INVALID"))
            self.assertRegex(str(error), f"{field}: .*is none of .*(max_yaw_degrees|single)")
        reached = {**vars(self.calls), **vars(self.faces)}
        self.assertEqual(reached, {}, "the server was called")

    def test_matches_carry_what_their_score_says_about_identity(self) -> None:
        match = self.visage.find_similar("collections/c", b"photo", face_selection="single").matches[0]
        self.assertEqual(self.calls.sought.face_selection, face_pb2.FACE_SELECTION_SINGLE)
        self.assertEqual(match.identity, IdentityEvidence(0.75, FalseMatchRate(None, 0.0, 0.0625, False)))
        self.assertIsNone(self.visage.find_similar("collections/c", "collections/c/faces/f").matches[0].identity)

    def test_enrolling_says_which_face(self) -> None:
        self.visage.enroll("collections/c", b"photo", face_id="f", face_selection="single", request_id="r")
        request = self.faces.enrolled
        self.assertEqual((request.image, request.request_id), (b"photo", "r"))
        self.assertEqual(request.face_selection, face_pb2.FACE_SELECTION_SINGLE)
        items = [EnrollItem(b"a"), EnrollItem(b"b", face_selection="single")]
        self.assertEqual(len(list(self.visage.enroll_many("collections/c", items))), 2)
        expected = [face_pb2.FACE_SELECTION_LARGEST, face_pb2.FACE_SELECTION_SINGLE]
        self.assertEqual(self.faces.selections, expected)

    def test_a_collection_needs_no_embedding_space(self) -> None:
        self.assertEqual(self.visage.create_collection("people").embedding_space, "models/d/versions/1#l")
        self.assertEqual(self.visage.create_collection("own", embedding_space="s").embedding_space, "s")

    def test_two_photos_are_compared(self) -> None:
        answer = self.visage.compare_faces(b"one", b"other", embedding_space="models/d", face_selection="single")
        self.assertEqual((answer.first_photo_notes, answer.second_photo_notes), ([], ["COLOURS_UNSURE"]))
        request = self.faces.compared
        self.assertEqual((request.first_image, request.second_image), (b"one", b"other"))
        self.assertEqual(request.embedding_space, "models/d")
        self.assertEqual(request.face_selection, face_pb2.FACE_SELECTION_SINGLE)
        # A score of 0 is a score.
        self.assertEqual((answer.score, answer.abstained), (0.0, False))
        self.assertEqual(answer.identity, IdentityEvidence(0.125, FalseMatchRate(0.25, 0.125, 0.5, True)))
        assert answer.first_face is not None and answer.second_face is not None
        self.assertEqual((answer.first_face.box.right, answer.second_face.box.right), (100, 40))

    def test_photos_that_cannot_be_compared_have_reasons_and_no_score(self) -> None:
        answer = self.visage.compare_faces(b"one", b"wall")
        self.assertEqual((answer.score, answer.identity, answer.second_face), (None, None, None))
        self.assertEqual((answer.abstained, answer.abstention_reasons), (True, ["NO_FACE"]))
        self.assertIsNotNone(answer.first_face)

    def test_a_version_says_how_it_reads_faces_and_what_scores_mean(self) -> None:
        version = self.visage.get_version("models/face@champion")
        self.assertEqual(version.architecture, "DLIB_AGE_GENDER")
        self.assertEqual((version.licence, version.source), ("CC0-1.0", "a page"))
        reader, calibration = version.face_reader, version.identity_calibration
        assert reader is not None and calibration is not None
        self.assertEqual((reader.detector, reader.embedder), ("models/mtcnn/versions/1", "models/d/versions/1"))
        self.assertEqual(reader.thresholds, {"min_face_px": 32, "min_symmetry": 0})
        numbers = (calibration.intercept, calibration.intercept_lower, calibration.intercept_upper)
        self.assertEqual(numbers, (-2, -3, -1))
        self.assertEqual((calibration.slope, calibration.slope_lower, calibration.slope_upper), (4, 3, 5))
        counted = (calibration.n_people, calibration.n_genuine_pairs, calibration.n_impostor_pairs)
        self.assertEqual(counted, (6, 7, 8))
        self.assertEqual((calibration.n_false_match_photos, calibration.n_false_match_pairs), (9, 10))
        self.assertEqual(calibration.false_matches, [FalseMatchPoint(0.5, 0.25, 0.125, 0.375)])
        self.assertEqual(calibration.sample, "photos of a club")
        whole = self.visage.get_version("models/photos@champion")
        self.assertEqual((whole.face_reader, whole.identity_calibration), (None, None))

    def test_versions_are_imported_and_deleted(self) -> None:
        version = self.visage.import_version(
            "models/age",
            "weights/age",
            architecture="DLIB_AGE_GENDER",
            detector="models/mtcnn@champion",
            embedder="models/d@champion",
            licence="CC0-1.0",
            source="a page",
        )
        self.assertEqual((version.name, version.architecture), ("models/age/versions/2", "DLIB_AGE_GENDER"))
        request = self.models.imported
        self.assertEqual((request.parent, request.weights_path), ("models/age", "weights/age"))
        self.assertEqual((request.detector, request.embedder), ("models/mtcnn@champion", "models/d@champion"))
        self.assertEqual((request.licence, request.source), ("CC0-1.0", "a page"))
        self.assertNotEqual(request.request_id, "")
        heads = [Head("sex", labels=["female", "male"])]
        self.visage.import_version("models/age", "w.pth", architecture="RESNET18", heads=heads, image_size_px=96)
        request = self.models.imported
        self.assertEqual(list(request.heads[0].classification.labels), ["female", "male"])
        self.assertEqual(request.image_size_px, 96)
        self.visage.delete_version(version.name)
        self.assertEqual(self.models.deleted, "models/age/versions/2")

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
