from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from small_vision import encoded, picture

from data.images import ImageError, Preprocessing, decoded

RED = (200, 30, 10)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def near(image: Image.Image, colour: tuple[int, ...], tolerance: int = 0) -> bool:
    found = np.asarray(image, np.int64).reshape(-1, 3)
    return bool((np.abs(found - np.array(colour)) <= tolerance).all())


def test_every_mode_becomes_rgb() -> None:
    plain = Image.new("RGB", (8, 6), RED)
    assert near(decoded(encoded(plain)), RED)
    assert near(decoded(encoded(plain.convert("CMYK"), "JPEG")), RED, 8)
    assert near(decoded(encoded(plain.quantize(4))), RED)
    assert near(decoded(encoded(plain.quantize(4), "GIF")), RED)
    assert near(decoded(encoded(Image.new("1", (3, 3), 1))), (255, 255, 255))
    assert near(decoded(encoded(Image.new("LA", (3, 3), (90, 255)))), (90, 90, 90))
    sixteen = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert near(decoded(encoded(sixteen)), (128, 128, 128))


def test_what_is_transparent_becomes_white() -> None:
    half = Image.new("RGBA", (4, 4), (*RED, 0))
    half.putpixel((1, 2), (*RED, 255))
    found = decoded(encoded(half))
    assert found.getpixel((1, 2)) == RED
    assert found.getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, 0, 0, 0])
    assert near(decoded(encoded(palette, transparency=0)), (255, 255, 255))


def test_a_photograph_stands_upright() -> None:
    image = Image.new("RGB", (4, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert decoded(encoded(image, "JPEG", exif=exif)).size == (2, 4)


def test_one_pixel_is_an_image() -> None:
    found = Preprocessing(6).pixels(encoded(Image.new("RGB", (1, 1), RED)))
    assert found.shape == (3, 6, 6)
    assert (found == np.array(RED)[:, None, None]).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (picture(1)[:-40], "damaged: "),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "damaged: image file is trunc"),
        (png_header(50_000, 50_000), "too large: "),
        (png_header(10_000, 9_500), "too large: "),
        (png_header(20, 30), "damaged: "),
        (b"", "no image: 0 bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image: 41 bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image: "),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "no image|damaged"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decoded(data)


def test_no_part_of_a_damaged_file_ends_the_program() -> None:
    whole = {kind: picture(2, kind=kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    rng = np.random.default_rng(0)
    for data in whole.values():
        for _ in range(40):
            torn = bytearray(data)
            for place in rng.integers(0, len(torn), 5):
                torn[place] = rng.integers(0, 256)
            try:
                image = decoded(bytes(torn))
            except ImageError:
                continue
            assert image.mode == "RGB"
    assert Image.open(BytesIO(whole["PNG"])).size == (17, 9)
