"""Writes the small files that fuzzing begins with: `python seeds.py`, with Pillow 12.0."""

import io
import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "fixtures"
sys.path.insert(0, str(FIXTURES))

from photos import display_p3  # noqa: E402


def exif(orientation: int) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def write(folder: str, name: str, data: bytes) -> None:
    (HERE / "seeds" / folder).mkdir(parents=True, exist_ok=True)
    (HERE / "seeds" / folder / name).write_bytes(data)


def save(folder: str, name: str, image: Image.Image, **how: object) -> None:
    out = io.BytesIO()
    image.save(out, format=folder, **how)
    write(folder, f"{name}.{folder}", out.getvalue())


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def text_of(length: int) -> bytes:
    return text("a" * length)


def zipped(pickle: bytes, storage: bytes = b"") -> bytes:
    """A PyTorch file of this pickle and one storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("archive/data.pkl", pickle), ("archive/data/0", storage)):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def main() -> None:
    photo = Image.open(FIXTURES / "portrait.jpg").convert("RGB").resize((37, 29), Image.Resampling.BICUBIC)
    alpha = photo.convert("RGBA")
    alpha.putalpha(photo.convert("L"))
    profile = display_p3()

    save("jpeg", "baseline", photo, quality=75, subsampling=2)
    save("jpeg", "fine", photo, quality=75, subsampling=0, optimize=True)
    save("jpeg", "wide", photo, quality=75, subsampling=1, restart_marker_blocks=1)
    save("jpeg", "progressive", photo, quality=75, progressive=True, restart_marker_rows=1)
    save("jpeg", "grey", photo.convert("L"), quality=75, exif=exif(6))
    save("jpeg", "inks", photo.convert("CMYK"), quality=75)
    save("jpeg", "display_p3", photo, quality=60, icc_profile=profile, exif=exif(3))

    small = photo.resize((13, 9))
    save("png", "rgb", small)
    save("png", "palette", small.quantize(7), transparency=1, bits=4)
    save("png", "deep", small.convert("I;16"))
    save("png", "alpha", alpha.resize((13, 9)), exif=exif(8)[6:])
    save("png", "grey_alpha", alpha.convert("LA").resize((9, 5)))
    save("png", "display_p3", small, icc_profile=profile)

    save("webp", "lossy", photo, quality=60)
    save("webp", "lossless", small, lossless=True)
    save("webp", "alpha", alpha, quality=60, exif=exif(5)[6:], icc_profile=profile)
    save("webp", "moving", small, save_all=True, append_images=[small.rotate(90)], duration=50)

    header = {
        "body.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "steps": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    head = json.dumps(header).encode()
    values = struct.pack("<6fq", 1, -2, 0.5, 3, 0, 9, 7)
    write("safetensors", "two.safetensors", struct.pack("<Q", len(head)) + head + values)
    write("state_dict", "refused-a-long-text-copied.pth", zipped(b"\x80\x02X" + text_of(1 << 16) + b"q\0" + b"h\0" * (1 << 14) + b"."))
    ones = b"(" + b"K\1" * 1000 + b"t"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X" + text("storage") + b"ctorch\nFloatStorage\nX" + text("0")
        + b"X" + text("cpu") + b"K\1tQK\0" + ones + ones + b"tR"
    )  # fmt: skip
    state = b"\x80\x02ccollections\nOrderedDict\n)R(X" + text("weight") + tensor + b"u."
    write("state_dict", "refused-a-thousand-dimensions.pth", zipped(state, struct.pack("<f", 1)))
    (HERE / "seeds" / "state_dict").mkdir(parents=True, exist_ok=True)
    shutil.copy(FIXTURES / "state_dict.pth", HERE / "seeds" / "state_dict" / "two.pth")


if __name__ == "__main__":
    main()
