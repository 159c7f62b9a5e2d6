"""Images as uint8 arrays (height, width, channels)."""

import numpy as np
from PIL import Image

from .errors import TaskError

# The image network halves each side four times and needs 3 to 16 pixels to be left.
SIDE_STEP = 16
SMALLEST_SIDE = 48
LARGEST_SIDE = 256


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, with a filter that grows with the reduction, so that every source pixel counts.

    image: (H, W, C) uint8. size: (height, width). Returns (height, width, C) uint8.
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    # Each channel alone: Pillow would take a fourth one for transparency and weigh the others by it.
    planes = [np.ascontiguousarray(image[:, :, channel]) for channel in range(image.shape[2])]
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def nearest_side(pixels: int) -> int:
    """The side nearest to `pixels` that the image network takes; of two equally near the larger."""
    steps = (pixels + SIDE_STEP // 2) // SIDE_STEP
    return min(max(steps * SIDE_STEP, SMALLEST_SIDE), LARGEST_SIDE)


def check_size(size: int) -> None:
    """Raises TaskError for a value of an option `size` that the image network does not take."""
    if size != nearest_side(size):
        raise TaskError(
            f"size={size} is not possible: an image's side is a multiple of {SIDE_STEP} "
            f"from {SMALLEST_SIDE} to {LARGEST_SIDE}. Use size={nearest_side(size)}."
        )
