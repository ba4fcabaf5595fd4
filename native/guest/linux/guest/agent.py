"""Runs one Python function for the host.

    agent.py NAME              serves NAME over the virtio serial port, a line of JSON a request
    agent.py NAME --reference  on the host: the inputs, their answers, and the files that it took;
                               a folder after it is where NAME makes its data, and reads it
"""

import importlib
import json
import os
import sys
import time
import traceback


def call(function, request):
    started = time.perf_counter_ns()
    answer = function.handle(request)
    return {"answer": answer, "us": (time.perf_counter_ns() - started) // 1000}


def serve(function):
    port = os.open("/dev/vport0p1", os.O_RDWR)
    requests = open(port, "rb")
    responses = open(port, "wb", closefd=False)

    def send(message):
        responses.write(json.dumps(message).encode() + b"\n")
        responses.flush()

    send({"ready": function.__name__})
    for line in requests:
        try:
            send(call(function, json.loads(line)["input"]))
        except Exception:
            send({"error": traceback.format_exc()})


def reference(function, data_folder=None):
    if data_folder and hasattr(function, "make_data"):
        function.make_data(data_folder)
        function.DATA = data_folder
    inputs = [
        {"name": name, "request": request, "answer": function.handle(request)}
        for name, request in function.INPUTS.items()
    ]
    files = set()
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        for path in (getattr(module, "__file__", None), getattr(spec, "cached", None)):
            if path and os.path.exists(path):
                files.add(os.path.realpath(path))
    here = os.path.dirname(os.path.realpath(__file__))
    json.dump(
        {
            "inputs": inputs,
            "files": sorted(path for path in files if not path.startswith(here)),
            "executable": os.path.realpath(sys.executable),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "functions"))
    loaded = importlib.import_module(sys.argv[1])
    reference(loaded, *sys.argv[3:]) if "--reference" in sys.argv else serve(loaded)
