"""From the bytes of an image to the pixels that a vision model reads. Pillow alone; no torch.

What is decoded is what the formats named here hold; nothing is fetched, no other program is run.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are decoded. Others that Pillow knows start programs (EPS) or are not images."""

MOST_PIXELS = 89_478_485
"""Width times height of the largest image that is decoded: where Pillow begins to warn."""

# Above the limit Pillow warns and goes on, and above twice the limit it refuses: refuse both.
warnings.simplefilter("error", Image.DecompressionBombWarning)

_BICUBIC = 3


class ImageError(Exception):
    """An image, or what says how to read it, that cannot be used: one line that says why."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How images become a vision model's pixels: `side` x `side`, rescaled, standardised."""

    side: int
    resample: int = _BICUBIC
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, path: Path) -> Preprocessing:
        """Read a `preprocessor_config.json`.

        Raises:
            ImageError: it is not there, or asks for what is not done here (a crop, one side).
        """
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            size = fields["size"]
            side, width = int(size["height"]), int(size["width"])
            found = cls(
                side,
                int(fields.get("resample", _BICUBIC)),
                float(fields.get("rescale_factor", 1 / 255)),
                _three(fields["image_mean"]),
                _three(fields["image_std"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageError(
                f"{path}: expected how a SigLIP's images are prepared (size with height and "
                f"width, image_mean, image_std), found {type(error).__name__}: {error}"
            ) from None
        off = [n for n in ("do_resize", "do_rescale", "do_normalize") if not fields.get(n, True)]
        if side != width or fields.get("do_center_crop") or off:
            raise ImageError(
                f"{path}: expected images resized to a square, rescaled and standardised, found "
                f"{width} x {side}{', a crop' * bool(fields.get('do_center_crop'))}"
                f"{''.join(f', no {name}' for name in off)}"
            )
        return found

    def save(self, path: Path) -> None:
        """Write it as `of` and the usual libraries read it."""
        fields = {
            "image_processor_type": "SiglipImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": self.side, "width": self.side},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
        }
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """What decides the pixels, as plain data."""
        return asdict(self)

    def pixels(self, data: bytes | Image.Image) -> NDArray[np.uint8]:
        """The pixels [3, side, side] of an image, encoded or Pillow's, before they are rescaled.

        Raises:
            ImageError: `decoded` says when.
        """
        image = decoded(data) if isinstance(data, bytes) else _upright(data)
        image = image.resize((self.side, self.side), Image.Resampling(self.resample))
        return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def decoded(data: bytes) -> Image.Image:
    """An encoded image in RGB, upright as its EXIF says; what is transparent becomes white.

    Of an animation the first frame counts. The size is checked before anything is decoded.

    Raises:
        ImageError: it is no image of `FORMATS`, is damaged or cut off, or has more pixels than
            `MOST_PIXELS`.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(_too_large(f"{image.width:,} x {image.height:,}"))
            return _upright(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_too_large(str(error).split(",", maxsplit=1)[0])) from None
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"no image: {len(data):,} bytes of none of {', '.join(FORMATS)}") from None
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise _damaged(error) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        image.load()
        return _on_white(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _damaged(error) from None


def _damaged(error: Exception) -> ImageError:
    return ImageError(f"damaged: {str(error) or type(error).__name__}")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits of grey: Pillow would cut them off at 255.
        grey = np.asarray(image, np.float64)
        scale = 255 / 65535 if grey.max(initial=0) > 255 else 1.0
        return Image.fromarray(np.clip(grey * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _too_large(found: str) -> str:
    return f"too large: {found} pixels, at most {MOST_PIXELS:,} are decoded"


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
