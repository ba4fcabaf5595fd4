"""Compresses a log file with zlib, and unpacks it again to be sure."""

import random
import zlib

INPUTS = {
    "128 KiB, level 6": {"offset": 0, "length": 128 << 10, "level": 6},
    "256 KiB, level 9": {"offset": 1 << 20, "length": 256 << 10, "level": 9},
}


def _log(length):
    some = random.Random(6)
    paths = [f"/api/v{some.randint(1, 3)}/{some.getrandbits(24):06x}" for _ in range(300)]
    lines = bytearray()
    second = 0
    while len(lines) < length:
        second += some.randrange(3)
        client = f"10.0.{some.randrange(256)}.{some.randrange(256)}"
        status = some.choice((200, 200, 304, 404))
        request = f'"GET {some.choice(paths)}" {status} {some.randrange(9999)}'
        lines += f"{client} - [{second // 60:02}:{second % 60:02}] {request}\n".encode()
    return bytes(lines[:length])


# What the function would fetch from its object store.
LOG = _log(2 << 20)


def handle(request):
    part = LOG[request["offset"] : request["offset"] + request["length"]]
    packed = zlib.compress(part, request["level"])
    if zlib.decompress(packed) != part:
        raise ValueError("what was unpacked is not what was packed")
    return {"bytes": len(packed), "crc32": zlib.crc32(packed)}
