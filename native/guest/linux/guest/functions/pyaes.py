"""AES-128 in counter mode, in pure Python with the four lookup tables of the cipher's authors."""

INPUTS = {
    "1 KiB": {"key": "000102030405060708090a0b0c0d0e0f", "message": "vHive ", "length": 1024},
    "3 KiB": {"key": "2b7e151628aed2a6abf7158809cf4f3c", "message": "snapshot ", "length": 3072},
}


def _double(value):
    return (value << 1) ^ (0x11B if value & 0x80 else 0)


def _sbox():
    box = [0x63] * 256
    p = q = 1
    while True:
        p ^= _double(p)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = q ^ _rotate(q, 1) ^ _rotate(q, 2) ^ _rotate(q, 3) ^ _rotate(q, 4)
        box[p] = rotated ^ 0x63
        if p == 1:
            return box


def _rotate(value, bits):
    return (value << bits | value >> 8 - bits) & 0xFF


def _tables():
    first = []
    for s in SBOX:
        twice = _double(s)
        first.append(twice << 24 | s << 16 | s << 8 | twice ^ s)
    tables = [first]
    for _ in range(3):
        tables.append([word >> 8 | (word & 0xFF) << 24 for word in tables[-1]])
    return tables


SBOX = _sbox()
T0, T1, T2, T3 = _tables()


def expand(key):
    words = [int.from_bytes(key[i : i + 4], "big") for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 44):
        word = words[-1]
        if i % 4 == 0:
            word = (word << 8 | word >> 24) & 0xFFFFFFFF
            word = _substitute(word, word, word, word) ^ constant << 24
            constant = _double(constant)
        words.append(words[i - 4] ^ word)
    return words


def _substitute(a, b, c, d):
    return (
        SBOX[a >> 24] << 24
        | SBOX[b >> 16 & 0xFF] << 16
        | SBOX[c >> 8 & 0xFF] << 8
        | SBOX[d & 0xFF]
    )


def encrypt_block(words, block):
    a, b, c, d = (block >> shift & 0xFFFFFFFF for shift in (96, 64, 32, 0))
    a, b, c, d = a ^ words[0], b ^ words[1], c ^ words[2], d ^ words[3]
    for i in range(4, 40, 4):
        a, b, c, d = (
            T0[a >> 24] ^ T1[b >> 16 & 0xFF] ^ T2[c >> 8 & 0xFF] ^ T3[d & 0xFF] ^ words[i],
            T0[b >> 24] ^ T1[c >> 16 & 0xFF] ^ T2[d >> 8 & 0xFF] ^ T3[a & 0xFF] ^ words[i + 1],
            T0[c >> 24] ^ T1[d >> 16 & 0xFF] ^ T2[a >> 8 & 0xFF] ^ T3[b & 0xFF] ^ words[i + 2],
            T0[d >> 24] ^ T1[a >> 16 & 0xFF] ^ T2[b >> 8 & 0xFF] ^ T3[c & 0xFF] ^ words[i + 3],
        )
    return (
        (_substitute(a, b, c, d) ^ words[40]) << 96
        | (_substitute(b, c, d, a) ^ words[41]) << 64
        | (_substitute(c, d, a, b) ^ words[42]) << 32
        | (_substitute(d, a, b, c) ^ words[43])
    )


def handle(request):
    text = request["message"].encode()
    length = request["length"]
    plain = (text * (length // len(text) + 1))[:length]
    words = expand(bytes.fromhex(request["key"]))
    cipher = bytearray()
    for counter, at in enumerate(range(0, length, 16), start=1):
        stream = encrypt_block(words, counter).to_bytes(16, "big")
        cipher += bytes(p ^ s for p, s in zip(plain[at : at + 16], stream))
    return cipher.hex()
