"""Logistic regression: says whether a review is a good one. Its weights stay in memory."""

import array
import math
import random
import re
import zlib

BUCKETS = 1 << 20

# 4 MiB of weights, as training would leave them.
WEIGHTS = array.array("f", (byte / 64 - 2 for byte in random.Random(5).randbytes(BUCKETS)))

WORDS = """the a an this that it is was very not quite film book plot story actor scene ending start
great good fine dull slow bright clever weak strong funny sad long short and but because while of in
with without I we they felt found thought liked loved hated enjoyed again never always""".split()


def _review(seed, words):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


INPUTS = {
    "10 short reviews": {"reviews": [_review(seed, 80) for seed in range(10)]},
    "8 long reviews": {"reviews": [_review(seed, 200) for seed in range(10, 18)]},
}


def features(text):
    """Counts of hashed words and pairs of words."""
    tokens = re.findall(r"\w+", text.lower())
    counts = {}
    for term in tokens + [f"{a} {b}" for a, b in zip(tokens, tokens[1:])]:
        bucket = zlib.crc32(term.encode()) % BUCKETS
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def handle(request):
    answers = []
    for review in request["reviews"]:
        counts = features(review)
        length = math.sqrt(sum(count * count for count in counts.values()))
        score = sum(WEIGHTS[bucket] * count for bucket, count in counts.items()) / length
        answers.append({"terms": len(counts), "good": round(1 / (1 + math.exp(-score)), 6)})
    return answers
