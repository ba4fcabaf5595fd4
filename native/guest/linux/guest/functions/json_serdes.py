"""Parses a JSON document, changes it, and writes it again."""

import hashlib
import json
import random

INPUTS = {
    "400 orders": {"document": "orders", "first": 0, "count": 400},
    "700 devices": {"document": "devices", "first": 100, "count": 700},
}


def _order(number, some):
    return {
        "id": f"order-{number:06}",
        "customer": {"name": f"customer {some.randrange(500)}", "vip": some.random() < 0.1},
        "lines": [
            {"sku": f"{some.getrandbits(32):08x}", "units": some.randint(1, 9), "cents": 99 + number}
            for _ in range(3)
        ],
        "note": None,
    }


def _device(number, some):
    readings = [round(some.gauss(20, 5), 3) for _ in range(8)]
    hall = f"hall {some.randrange(40)}"
    return {"device": number, "site": hall, "on": True, "readings": readings}


# What the function would fetch from its object store: a document a line, as bytes.
STORE = {
    name: [json.dumps(make(number, some)).encode() for number in range(count)]
    for name, make, count, some in (
        ("orders", _order, 1000, random.Random(1)),
        ("devices", _device, 2000, random.Random(2)),
    )
}


def handle(request):
    first, count = request["first"], request["count"]
    text = b"[" + b",".join(STORE[request["document"]][first : first + count]) + b"]"
    document = json.loads(text)
    for index, entry in enumerate(document):
        entry["index"] = index
    written = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(written).hexdigest()
    return {"entries": len(document), "bytes": len(written), "sha256": digest}
