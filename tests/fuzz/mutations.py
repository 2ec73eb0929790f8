"""Random damage to bytes, to the members of a zip archive and to text; everything follows from the generator given."""

import io
import re
import zipfile

EXTREMES = [b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\0\0\0\x80", b"\x01" + b"\0" * 7]
WORDS = [
    "None",
    "-1",
    "0",
    "1e30",
    "10**9",
    "''",
    "[]",
    "{}",
    "'x'",
    "dict()",
    "(1,)",
    "True",
    "nan",
    "=",
    "(",
    "\n",
    "#",
]


def damage(data, random):
    """One to three of: bits flipped, numbers made extreme, a piece lost, doubled, moved, replaced by noise, cut off."""
    data = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(data) + 1)
        size = random.choice([1, 2, 4, 8, 64, len(data) // 4])
        piece = data[at : at + size]
        kind = random.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            extreme = random.choice(EXTREMES)
            data[at : at + len(extreme)] = extreme
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = piece
        elif kind == 4:
            to = random.randrange(len(data) + 1)
            data[to : to + len(piece)] = piece
        elif kind == 5:
            data[at : at + size] = random.randbytes(len(piece))
        else:
            del data[at:]
    return bytes(data)


def damage_member(data, random):
    """Damage inside one member of a zip, whose checksums then hold."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = random.choice([name for name in members if members[name]])
    if random.random() < 0.1:
        del members[name]
    else:
        members[name] = damage(members[name], random)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def damage_text(text, random):
    """A word, number or sign lost, doubled, or replaced by another."""
    tokens = re.findall(r"\w+|\s+|[^\w\s]", text)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(tokens))
        kind = random.randrange(4)
        if kind == 0:
            tokens[at] = random.choice(WORDS)
        elif kind == 1:
            tokens[at] = random.choice(tokens)
        elif kind == 2:
            tokens[at] = ""
        else:
            tokens[at] += tokens[random.randrange(len(tokens))]
    return "".join(tokens)


VALUES = [None, -1, 0, 1.5, float("nan"), "", "x", "visionkit.X", [], {}, dict(type="x"), [1], ["x", None], True]


def damage_setting(config, random):
    """One of the numbers and words, however deep they stand, replaced by another kind of value."""
    places, open_ = [], [config]
    for here in open_:
        for place in here if isinstance(here, dict) else range(len(here)):
            if isinstance(here[place], (dict, list)):
                open_.append(here[place])
            else:
                places.append((here, place))
    here, place = random.choice(places)
    here[place] = random.choice(VALUES)
    return config


def damage_values(config, random):
    """A value somewhere in nested dictionaries and lists replaced by another kind, lost, or under a wrong name."""
    here = config
    while True:
        places = list(here) if isinstance(here, dict) else range(len(here))
        place = random.choice(list(places))
        if isinstance(here[place], (dict, list)) and here[place] and random.random() < 0.8:
            here = here[place]
            continue
        kind = random.randrange(6)
        if kind == 0:
            del here[place]
        elif kind == 1 and isinstance(here, dict):
            here[place + "s"] = here.pop(place)
        else:
            here[place] = random.choice(VALUES)
        return config
