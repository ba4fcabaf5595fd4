"""The smallest function: what a restore costs when the function itself does nothing."""

INPUTS = {"world": {"name": "world"}, "records": {"name": "REAP", "times": 3}}


def handle(request):
    return [f"Hello, {request['name']}!"] * request.get("times", 1)
