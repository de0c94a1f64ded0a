"""Reading pictures of every kind that people have into what models take."""

from __future__ import annotations

import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

#: Larger pictures are refused before they are decoded: they would take more than 500 MB.
MAX_PIXELS = 178_956_970


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a picture file as 8-bit RGB.

    Grayscale, palette, CMYK and 16-bit pictures are converted (16-bit ones scaled, not cut off),
    transparent parts become white, the first frame of an animation is taken, and the camera's
    orientation tag is applied.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ImageError: The file is missing, no picture, truncated, or has over `MAX_PIXELS` pixels.
    """
    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on odd metadata
            with Image.open(name) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(_too_large(name))
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ImageError(_too_large(name)) from None
    except FileNotFoundError:
        raise ImageError(f"There is no file {name}: check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder: name the picture files in it.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture that can be read (another format, or cut off at its start): "
            "use a whole PNG, JPEG or WebP file."
        ) from None
    except MemoryError:
        raise ImageError(_too_large(name)) from None
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        # Pillow's decoders raise each of these on damaged data.
        raise ImageError(
            f"The picture {name} cannot be decoded, perhaps because it is truncated or damaged "
            f"({error}): save or copy it again."
        ) from None


def _too_large(name: str) -> str:
    return (
        f"The picture {name} has more than {MAX_PIXELS // 10**6} million pixels, which is too "
        "large to read safely: scale it down first."
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        # 16-bit files come as "I;16" or "I"; floats, where they are not in [0, 1], by their range.
        top = 65535.0 if image.mode != "F" else max(1.0, float(np.nanmax(values, initial=0.0)))
        scaled = np.nan_to_num(values / top * 255.0).clip(0, 255).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
