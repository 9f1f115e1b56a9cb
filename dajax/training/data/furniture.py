"""The things in the scenes as data: which parts they have, how big they are, and how often they appear."""

from typing import NamedTuple

import numpy as np

PARTS = 8  # the largest number of parts of a thing
SHAPES = BOX, BALL, CAN = range(3)  # a ball is an ellipsoid, and a can is an upright cylinder
ABSENT = len(SHAPES)

# A part: its name, its centre and its half size, in coordinates in which the whole thing fills [-1, 1] x [0, 1] x
# [-1, 1] (across, up, deep). A "log" is a can that lies across. A part whose name ends with "?" is present in six of
# ten things.
_Part = tuple[str, tuple[float, float, float], tuple[float, float, float]]
_SHAPE_OF = {"box": BOX, "ball": BALL, "can": CAN, "log": CAN}


class Kind(NamedTuple):
    """One kind of thing: its weights in rooms and outdoors, its smallest and largest size, and its parts.

    A size is half width, height and half depth in metres. A "round" thing keeps its proportions, a "wall" thing stands
    or hangs at a wall, and a "full" thing reaches from the floor to the ceiling.
    """

    name: str
    indoor: float
    outdoor: float
    small: tuple[float, float, float]
    large: tuple[float, float, float]
    parts: list[_Part]
    rule: str = ""
    outdoor_scale: float = 1


def _mirrored(shape: str, centre: tuple[float, float, float], half: tuple[float, float, float]) -> list[_Part]:
    x, y, z = centre
    return [(shape, (i * x, y, j * z), half) for i in (-1, 1) for j in (-1, 1)]


def _legs(top: float, thick: float) -> list[_Part]:
    return _mirrored("box", (0.9, top / 2, 0.9), (thick, top / 2, thick))


KINDS = [
    Kind("crate", 3, 2, (0.1, 0.15, 0.1), (0.5, 0.9, 0.5), [("box", (0, 0.5, 0), (1, 0.5, 1))], outdoor_scale=1.5),
    Kind(
        "stack",
        2,
        1,
        (0.2, 0.4, 0.2),
        (0.5, 1.3, 0.5),
        [
            ("box", (0, 0.3, 0), (1, 0.3, 1)),
            ("box", (0.1, 0.75, 0.05), (0.6, 0.15, 0.7)),
            ("ball?", (0.1, 0.99, 0), (0.35, 0.09, 0.35)),
        ],
        outdoor_scale=1.5,
    ),
    Kind("ball", 2, 2, (0.08, 0.16, 0.08), (0.5, 1.0, 0.5), [("ball", (0, 0.5, 0), (1, 0.5, 1))], "round", 1.5),
    Kind("drum", 2, 1, (0.1, 0.2, 0.1), (0.4, 1.1, 0.4), [("can", (0, 0.5, 0), (1, 0.5, 1))], "round", 1.5),
    Kind("log", 1, 1, (0.3, 0.2, 0.1), (1.0, 0.6, 0.3), [("log", (0, 0.5, 0), (1, 0.5, 1))], "round", 1.5),
    Kind(
        "table",
        3,
        0.7,
        (0.4, 0.6, 0.3),
        (0.9, 0.85, 0.6),
        [
            ("box", (0, 0.97, 0), (1, 0.03, 1)),
            *_legs(0.94, 0.05),
            ("can?", (0.35, 1.1, 0.2), (0.1, 0.1, 0.14)),
            ("ball?", (-0.4, 1.13, -0.1), (0.14, 0.13, 0.2)),
            ("box?", (-0.05, 1.06, 0.4), (0.2, 0.06, 0.25)),
        ],
    ),
    Kind(
        "chair",
        3,
        0.5,
        (0.2, 0.8, 0.2),
        (0.28, 1.05, 0.28),
        [("box", (0, 0.48, 0), (1, 0.03, 1)), ("box", (0, 0.78, -0.93), (1, 0.2, 0.07)), *_legs(0.45, 0.09)],
    ),
    Kind(
        "round table",
        1,
        0.4,
        (0.25, 0.45, 0.25),
        (0.6, 0.95, 0.6),
        [
            ("can", (0, 0.96, 0), (1, 0.04, 1)),
            ("can", (0, 0.48, 0), (0.08, 0.46, 0.08)),
            ("can", (0, 0.015, 0), (0.5, 0.015, 0.5)),
            ("ball?", (0.2, 1.15, 0), (0.2, 0.15, 0.2)),
        ],
        "round",
    ),
    Kind(
        "shelf",
        2,
        0,
        (0.4, 0.8, 0.15),
        (0.9, 2.0, 0.25),
        [
            ("box", (-0.97, 0.5, 0), (0.03, 0.5, 1)),
            ("box", (0.97, 0.5, 0), (0.03, 0.5, 1)),
            *(("box", (0, y, 0), (0.97, 0.015, 0.98)) for y in (0.03, 0.35, 0.67, 0.98)),
            ("box?", (-0.4, 0.475, 0), (0.3, 0.11, 0.7)),
            ("box?", (0.4, 0.775, 0), (0.35, 0.09, 0.7)),
        ],
        "wall",
    ),
    Kind("cabinet", 2, 0, (0.3, 0.6, 0.2), (1.0, 2.1, 0.4), [("box", (0, 0.5, 0), (1, 0.5, 1))], "wall"),
    Kind("painting", 2, 0, (0.3, 1.9, 0.02), (0.8, 2.3, 0.03), [("box", (0, 0.8, 0), (1, 0.17, 1))], "wall"),
    Kind(
        "floor lamp",
        2,
        0,
        (0.15, 1.3, 0.15),
        (0.25, 1.8, 0.25),
        [
            ("can", (0, 0.012, 0), (0.9, 0.012, 0.9)),
            ("can", (0, 0.45, 0), (0.09, 0.43, 0.09)),
            ("can", (0, 0.89, 0), (1, 0.11, 1)),
        ],
        "round",
    ),
    Kind("pole", 1, 2, (0.02, 1.2, 0.02), (0.05, 2.2, 0.05), [("can", (0, 0.5, 0), (1, 0.5, 1))], "round", 3),
    Kind("pillar", 1, 0, (0.1, 2, 0.1), (0.3, 3, 0.3), [("box", (0, 0.5, 0), (1, 0.5, 1))], "full"),
    Kind("column", 1, 0, (0.1, 2, 0.1), (0.25, 3, 0.25), [("can", (0, 0.5, 0), (1, 0.5, 1))], "full"),
    Kind(
        "pendant",
        1,
        0,
        (0.15, 2, 0.15),
        (0.3, 3, 0.3),
        [("can", (0, 0.87, 0), (0.05, 0.13, 0.05)), ("ball", (0, 0.7, 0), (1, 0.06, 1))],
        "full",
    ),
    Kind(
        "sign",
        0,
        2,
        (0.3, 2.0, 0.3),
        (0.6, 3.5, 0.6),
        [("can", (0, 0.5, 0), (0.1, 0.5, 0.1)), ("box", (0, 0.85, 0.12), (1, 0.14, 0.03))],
    ),
    Kind(
        "street lamp",
        0,
        2,
        (0.8, 4.0, 0.8),
        (1.2, 7.0, 1.2),
        [
            ("can", (0, 0.5, 0), (0.07, 0.5, 0.07)),
            ("log", (0.4, 0.98, 0), (0.4, 0.008, 0.05)),
            ("ball", (0.8, 0.965, 0), (0.14, 0.025, 0.14)),
        ],
    ),
    Kind(
        "tree",
        0,
        5,
        (0.8, 3.0, 0.8),
        (2.0, 8.0, 2.0),
        [
            ("can", (0, 0.25, 0), (0.1, 0.28, 0.1)),
            ("ball", (0, 0.7, 0), (1, 0.28, 1)),
            ("ball", (0.35, 0.55, 0.3), (0.6, 0.2, 0.6)),
            ("ball?", (-0.4, 0.6, -0.2), (0.6, 0.18, 0.6)),
        ],
    ),
    Kind("bush", 0.3, 3, (0.2, 0.3, 0.2), (0.6, 0.8, 0.6), [("ball", (0, 0.4, 0), (1, 0.6, 1))], outdoor_scale=1.7),
    Kind(
        "building",
        0,
        5,
        (3.0, 4.0, 3.0),
        (9.0, 20.0, 8.0),
        [
            ("box", (0, 0.49, 0), (1, 0.49, 1)),
            ("box", (0, 0.985, 0), (1.05, 0.015, 1.05)),
            ("box?", (0.5, 1.04, 0.4), (0.1, 0.06, 0.1)),
        ],
    ),
    Kind("wall", 0, 1.5, (3.0, 1.0, 0.1), (8.0, 2.5, 0.2), [("box", (0, 0.5, 0), (1, 0.5, 1))]),
    Kind(
        "fence",
        0,
        2,
        (2.0, 0.8, 0.04),
        (4.0, 1.2, 0.06),
        [
            *(("box", (x, 0.5, 0), (0.015, 0.5, 1)) for x in (-0.98, -0.49, 0, 0.49, 0.98)),
            *(("box", (0, y, 0), (0.98, 0.04, 0.5)) for y in (0.4, 0.85)),
        ],
    ),
    Kind(
        "car",
        0,
        3,
        (0.8, 1.4, 1.8),
        (0.95, 1.8, 2.3),
        [
            ("box", (0, 0.4, 0), (1, 0.21, 1)),
            ("box", (0, 0.8, -0.1), (0.85, 0.2, 0.5)),
            *_mirrored("log", (0.9, 0.2, 0.6), (0.12, 0.2, 0.17)),
        ],
    ),
    Kind(
        "figure",
        1,
        2.5,
        (0.22, 1.5, 0.15),
        (0.28, 1.9, 0.2),
        [
            *(("can", (x, 0.24, 0), (0.3, 0.24, 0.45)) for x in (-0.4, 0.4)),
            ("can", (0, 0.66, 0), (0.8, 0.19, 0.9)),
            *(("can", (x, 0.66, 0), (0.2, 0.19, 0.3)) for x in (-1, 1)),
            ("ball", (0, 0.925, 0), (0.4, 0.075, 0.6)),
        ],
    ),
    Kind(
        "arch",
        0.5,
        1,
        (0.8, 2.0, 0.15),
        (1.5, 2.4, 0.3),
        [
            ("box", (-0.88, 0.44, 0), (0.12, 0.44, 1)),
            ("box", (0.88, 0.44, 0), (0.12, 0.44, 1)),
            ("box", (0, 0.94, 0), (1, 0.06, 1)),
        ],
        outdoor_scale=1.5,
    ),
    Kind(
        "stairs",
        0.7,
        0.7,
        (0.4, 0.5, 0.5),
        (0.8, 1.2, 0.9),
        [("box", (0, (i + 1) / 8, i / 4 - 0.75), (1, (i + 1) / 8, 0.25)) for i in range(4)],
        outdoor_scale=1.5,
    ),
]


class Tables(NamedTuple):
    """`KINDS` as arrays with one row for each kind."""

    chance: np.ndarray  # [2, kinds]: cumulative, outdoors and indoors
    small: np.ndarray  # [kinds, 3]
    large: np.ndarray  # [kinds, 3]
    outdoor_scale: np.ndarray  # [kinds]
    round: np.ndarray  # bool [kinds]
    wall: np.ndarray  # bool [kinds]
    full: np.ndarray  # bool [kinds]
    shape: np.ndarray  # int32 [kinds, parts], ABSENT where there is no part
    optional: np.ndarray  # bool [kinds, parts]
    lying: np.ndarray  # bool [kinds, parts]
    centre: np.ndarray  # [kinds, parts, 3]
    half: np.ndarray  # [kinds, parts, 3]


def tables() -> Tables:
    """Return `KINDS` as arrays."""
    weights = np.array([[kind.outdoor for kind in KINDS], [kind.indoor for kind in KINDS]])
    shape = np.full((len(KINDS), PARTS), ABSENT, np.int32)
    optional, lying = np.zeros(shape.shape, bool), np.zeros(shape.shape, bool)
    centre, half = np.zeros((*shape.shape, 3), np.float32), np.ones((*shape.shape, 3), np.float32)
    for i, kind in enumerate(KINDS):
        for j, (name, *place) in enumerate(kind.parts):
            shape[i, j] = _SHAPE_OF[name.rstrip("?")]
            optional[i, j] = name.endswith("?")
            lying[i, j] = name.startswith("log")
            centre[i, j], half[i, j] = place
    return Tables(
        chance=(weights.cumsum(1) / weights.sum(1, keepdims=True)).astype(np.float32),
        small=np.array([kind.small for kind in KINDS], np.float32),
        large=np.array([kind.large for kind in KINDS], np.float32),
        outdoor_scale=np.array([kind.outdoor_scale for kind in KINDS], np.float32),
        round=np.array([kind.rule == "round" for kind in KINDS]),
        wall=np.array([kind.rule == "wall" for kind in KINDS]),
        full=np.array([kind.rule == "full" for kind in KINDS]),
        shape=shape,
        optional=optional,
        lying=lying,
        centre=centre,
        half=half,
    )
