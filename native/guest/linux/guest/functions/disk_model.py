"""Looks the tokens of a text up in a model of 24 MiB that stays on the disk, and pools their rows."""

import os
import random
import struct
import zlib

ROWS = 1536
ROW_BYTES = 16 << 10

# Where make_data() has put the model: in the guest, and with --reference elsewhere.
DATA = "/data"


def make_data(folder):
    with open(os.path.join(folder, "model"), "wb") as model:
        some = random.Random(9)
        for _ in range(ROWS):
            model.write(some.randbytes(ROW_BYTES))


def _tokens(seed, count):
    return random.Random(seed).sample(range(ROWS), count)


INPUTS = {
    "512 tokens": {"tokens": _tokens(10, 512)},
    "480 others": {"tokens": _tokens(11, 480)},
}


def handle(request):
    model = os.open(os.path.join(DATA, "model"), os.O_RDONLY)
    pooled = [0] * 8
    checksum = 0
    try:
        for token in request["tokens"]:
            row = os.pread(model, ROW_BYTES, token * ROW_BYTES)
            pooled = [sum(pair) for pair in zip(pooled, struct.unpack_from("<8h", row))]
            checksum = zlib.crc32(row, checksum)
    finally:
        os.close(model)
    return {"tokens": len(request["tokens"]), "pooled": pooled, "crc32": checksum}
