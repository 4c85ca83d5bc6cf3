"""Text and a chat for the tests of tokenizers."""

import random

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Oh, hi"},
    {"role": "user", "content": "1+2?"},
    {"role": "assistant", "content": "3"},
]


def texts(count=300):
    """Sentences of made-up words, each after some white space and with a number."""
    rng = random.Random(0)
    words = ["".join(rng.choices(("ri", "ver", "sto", "ne", "chi", "ld", "tow", "er"), k=3)) for _ in range(200)]
    return [" ".join(rng.choices(words, k=40)) + f"\n\n    indented {rng.randint(0, 999)}" for _ in range(count)]
