"""Turns a bitmap of 32-bit pixels by a quarter, a half or three quarters."""

import array
import hashlib
import random

INPUTS = {
    "640 × 480, 90°": {"image": 0, "degrees": 90},
    "1024 × 768, 270°": {"image": 1, "degrees": 270},
}


def _bitmap(width, height, seed):
    """Noise over a gradient, so that no two rows or columns are alike."""
    some = random.Random(seed)
    pixels = array.array("I")
    for y in range(height):
        noise = int.from_bytes(some.randbytes(width * 4), "little")
        gradient = int.from_bytes(y.to_bytes(4, "little") * width, "little")
        pixels.frombytes((noise | gradient).to_bytes(width * 4, "little"))
    return width, height, pixels


# What the function would fetch from its object store, decoded.
STORE = [_bitmap(640, 480, 3), _bitmap(1024, 768, 4)]


def rotate(width, height, pixels, degrees):
    """Clockwise, column by column: no reading order fits the memory, as in any such code."""
    if degrees == 180:
        return width, height, pixels[::-1]
    turned = array.array("I")
    columns = range(width) if degrees == 90 else range(width - 1, -1, -1)
    for x in columns:
        column = pixels[x::width]
        if degrees == 90:
            column.reverse()
        turned.extend(column)
    return height, width, turned


def handle(request):
    width, height, turned = rotate(*STORE[request["image"]], request["degrees"])
    return {"width": width, "height": height, "sha256": hashlib.sha256(turned).hexdigest()}
