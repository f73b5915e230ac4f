"""What clients say, and what the model must answer to it.

Pure. A message says how long its reply is and how fast it comes, and every word of the reply
follows from the message: so whoever reads a reply can tell whether it is the right one, whole.
"""

import random
import re
import zlib

from rig.model_server import Call, Cut, Plan

_FORM = re.compile(r"(\S+): (\d+) words, one in (\d+) ms(, then break off)?")


def make_message(name: str, rng: random.Random, longest: float) -> str:
    """A message that nobody else says; its reply takes up to `longest` seconds."""
    seconds = rng.uniform(0.05, longest) if rng.random() < 0.5 else 0.05
    pause = rng.choice([2, 5, 10, 20, 40])
    count = min(400, max(2, int(seconds * 1000 / pause)))
    ending = ", then break off" if rng.random() < 0.03 else ""
    return f"{name}: {count} words, one in {pause} ms{ending}"


def right_reply(message: str) -> str:
    """All that the model says to a message, if nothing comes between."""
    return "".join(_words(message))


def breaks_off(message: str) -> bool:
    """Whether the model never says all of it."""
    match = _FORM.fullmatch(message)
    return match is not None and match[4] is not None


def play(call: Call) -> Plan:
    """How the model server answers: word by word."""
    message = call.last_user_message
    words = _words(message)
    match = _FORM.fullmatch(message)
    pause = int(match[3]) / 1000 if match else 0
    at = {len(words) // 2: Cut()} if breaks_off(message) else {}
    return Plan(deltas=words, delta_delay=pause, at=at)


def _words(message: str) -> list[str]:
    match = _FORM.fullmatch(message)
    if match is None:
        return ["I ", "do ", "not ", "understand."]
    words = [f"{number}·{_digest(f'{message}/{number}')} " for number in range(int(match[2]))]
    return [*words, f"end·{_digest(''.join(words))}"]


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
