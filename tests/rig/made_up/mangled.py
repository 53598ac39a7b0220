"""Records that somebody else has put on a topic: sound ones made wrong in many ways, by a seed."""

import json
import random
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**70, 1e308, float("nan"), float("inf"), "", "x" * 5000, "../..",
    "\ud800", [], [[]], {}, {"a": {"b": 1}}, [None] * 50,
)  # fmt: skip


def mangled(sound: bytes, count: int, seed: int) -> Iterator[bytes | None]:
    """`count` values: bytes at random, cut or altered ones, documents with fields of other types,
    missing and unknown ones, and tombstones."""
    dice = random.Random(seed)
    for _ in range(count):
        yield _one(sound, dice)


def _one(sound: bytes, dice: random.Random) -> bytes | None:
    way = dice.randrange(8)
    if way == 0:
        return None
    if way == 1:
        return dice.randbytes(dice.randrange(200))
    if way == 2:
        return sound[: dice.randrange(len(sound))]
    if way == 3:
        altered = bytearray(sound)
        for _ in range(dice.randint(1, 4)):
            altered[dice.randrange(len(altered))] = dice.randrange(256)
        return bytes(altered)
    if way == 4:
        return _text(dice.choice(ODD))
    try:
        document = json.loads(sound)
    except ValueError:
        return dice.randbytes(len(sound))
    return _text(_changed(document, dice))


def _changed(document: Any, dice: random.Random) -> Any:
    """One field, at any depth, becomes something else, goes away, or comes in addition."""
    if isinstance(document, list) and document and dice.random() < 0.7:
        at = dice.randrange(len(document))
        return [*document[:at], _changed(document[at], dice), *document[at + 1 :]]
    if not isinstance(document, dict) or not document:
        return dice.choice(ODD)
    name = dice.choice(list(document))
    way = dice.random()
    if way < 0.15:
        return {key: value for key, value in document.items() if key != name}
    if way < 0.25:
        return {**document, "unknown": dice.choice(ODD)}
    return {**document, name: _changed(document[name], dice)}


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()
