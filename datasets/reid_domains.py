"""The two synthetic domains and how many of everything each scale holds.

Summer stands in for Market-1501: bright solid clothes, cameras at eye level in good light. Winter stands in for
DukeMTMC-reID: dark clothes told apart by cut, pattern and accents, cameras high up with their own tint and haze.
"""

from dataclasses import dataclass

from reid_cameras import CameraRanges
from reid_people import Wardrobe


@dataclass(frozen=True)
class Counts:
    """Numbers of identities and images of one domain at one scale."""

    cameras: int
    train_ids: int
    train: int
    test_ids: int
    query: int
    gallery: int
    distractor_ids: int
    distractors: int
    junk: int


@dataclass(frozen=True)
class Domain:
    """A domain: how its people dress, how its cameras see, and how good its detector is."""

    name: str
    folder: str
    wardrobe: Wardrobe
    cameras: CameraRanges
    jitter: float
    occlusion: float
    counts: dict[str, Counts]


SUMMER = Domain(
    name="market",
    folder="Market-1501-v15.09.15",
    wardrobe=Wardrobe(
        tops={"tshirt": 0.6, "vest": 0.15, "shirt": 0.25},
        patterns={"plain": 0.45, "print": 0.2, "hstripes": 0.12, "twotone": 0.08, "dots": 0.07, "checks": 0.08},
        bottoms={"trousers": 0.35, "shorts": 0.35, "skirt": 0.2, "dress": 0.1},
        bags={"none": 0.4, "backpack": 0.3, "shoulder": 0.15, "handbag": 0.15},
        hats={"none": 0.8, "cap": 0.12, "brim": 0.08},
        saturation=(0.35, 0.95),
        value=(0.35, 1.0),
        grey=0.25,
        bottom_value=(0.2, 0.95),
        accent_value=(0.3, 1.0),
    ),
    cameras=CameraRanges(
        elevation=(0.0, 0.2),
        gain=0.08,
        tint=(1.05, 1.0, 0.93),
        exposure=(0.85, 1.15),
        gamma=(1.05, 1.35),
        saturation=(0.85, 1.05),
        haze=(0.0, 0.05),
        shade=(0.1, 0.3),
        blur=(0.2, 0.7),
        noise=(2.0, 6.0),
        detail=(0.6, 0.9),
        ground_value=(0.6, 0.85),
        ground_saturation=(0.0, 0.2),
        clutter=8,
    ),
    jitter=0.035,
    occlusion=0.04,
    counts={
        "tiny": Counts(3, 24, 168, 16, 40, 96, 4, 12, 12),
        "small": Counts(4, 150, 2100, 100, 300, 1200, 50, 150, 120),
        "full": Counts(6, 751, 12936, 750, 3368, 13115, 900, 2798, 3819),
    },
)

WINTER = Domain(
    name="duke",
    folder="DukeMTMC-reID",
    wardrobe=Wardrobe(
        tops={"coat": 0.5, "shirt": 0.45, "tshirt": 0.05},
        patterns={
            "plain": 0.2,
            "open": 0.2,
            "yoke": 0.15,
            "vstripes": 0.1,
            "checks": 0.1,
            "diagonal": 0.12,
            "twotone": 0.13,
        },
        bottoms={"trousers": 0.85, "skirt": 0.1, "shorts": 0.05},
        bags={"none": 0.35, "backpack": 0.4, "shoulder": 0.2, "handbag": 0.05},
        hats={"none": 0.55, "cap": 0.15, "beanie": 0.3},
        saturation=(0.3, 0.9),
        value=(0.1, 0.6),
        grey=0.3,
        bottom_value=(0.1, 0.5),
        accent_value=(0.2, 0.8),
    ),
    cameras=CameraRanges(
        elevation=(0.3, 0.6),
        gain=0.07,
        tint=(0.75, 0.95, 1.25),
        exposure=(0.9, 1.15),
        gamma=(0.65, 0.8),
        saturation=(0.75, 0.95),
        haze=(0.08, 0.16),
        shade=(0.05, 0.2),
        blur=(0.3, 0.75),
        noise=(2.0, 5.0),
        detail=(0.5, 0.75),
        ground_value=(0.25, 0.75),
        ground_saturation=(0.05, 0.45),
        clutter=22,
    ),
    jitter=0.035,
    occlusion=0.05,
    counts={
        "tiny": Counts(3, 24, 168, 16, 40, 96, 4, 12, 0),
        "small": Counts(5, 150, 2100, 100, 300, 1200, 50, 150, 0),
        "full": Counts(8, 702, 16522, 702, 2228, 14000, 408, 3661, 0),
    },
)

DOMAINS = (SUMMER, WINTER)
SCALES = tuple(SUMMER.counts)
