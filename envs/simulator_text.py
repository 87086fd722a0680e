"""Words of the synthetic store: category names, titles and descriptions that show an item's shelf and style.

Text is put together from word lists, so that a bag-of-words embedding sees shelf and style through several synonyms and
a title task has something to learn. Left out on purpose: an item's quality never shows here, nor does its popularity.
"""

import numpy as np

DEPARTMENTS: tuple[tuple[str, tuple[tuple[str, tuple[str, ...], str], ...]], ...] = (
    (
        "Outdoor",
        (
            ("Tents", ("tent", "dome tent", "bivouac shelter", "tarp"), "camping nights under the stars"),
            ("Backpacks", ("backpack", "rucksack", "daypack", "trekking pack"), "long hikes with a full load"),
            ("Sleeping Gear", ("sleeping bag", "camping quilt", "sleeping mat", "hammock"), "warm sleep in the wild"),
            ("Camp Cooking", ("camp stove", "mess kit", "billy pot", "fire grill"), "hot meals far from a kitchen"),
        ),
    ),
    (
        "Kitchen",
        (
            ("Knives", ("chef knife", "paring knife", "cleaver", "bread knife"), "slicing, dicing and carving"),
            ("Coffee", ("espresso maker", "coffee grinder", "pour-over dripper", "moka pot"), "a fresh morning brew"),
            ("Bakeware", ("cake tin", "baking tray", "loaf pan", "muffin mould"), "bread, cakes and pastry"),
            ("Cookware", ("frying pan", "saucepan", "casserole", "wok"), "searing, simmering and stewing"),
        ),
    ),
    (
        "Electronics",
        (
            ("Headphones", ("headphones", "earbuds", "headset", "earphones"), "music and calls on the move"),
            ("Keyboards", ("keyboard", "keypad", "typing board", "key deck"), "typing at a desk all day"),
            ("Cameras", ("camera", "action cam", "compact camera", "camcorder"), "photographs and short films"),
            ("Speakers", ("speaker", "soundbar", "party speaker", "bookshelf speaker"), "filling a room with sound"),
        ),
    ),
    (
        "Garden",
        (
            ("Hand Tools", ("trowel", "pruning shears", "garden fork", "weeder"), "digging, weeding and pruning"),
            ("Planters", ("planter", "flower pot", "window box", "hanging basket"), "herbs and flowers in pots"),
            ("Watering", ("watering can", "garden hose", "sprinkler", "drip kit"), "watering beds and lawns"),
            ("Garden Lights", ("lantern", "path light", "string lights", "solar lamp"), "evenings on the terrace"),
        ),
    ),
    (
        "Toys",
        (
            ("Puzzles", ("jigsaw puzzle", "brain teaser", "puzzle cube", "tangram"), "quiet hours of puzzling"),
            (
                "Building Sets",
                ("brick set", "construction kit", "marble run", "magnetic tiles"),
                "building and rebuilding",
            ),
            ("Plush", ("plush bear", "soft toy", "cuddle rabbit", "stuffed fox"), "cuddles at bedtime"),
            ("Board Games", ("board game", "card game", "dice game", "strategy game"), "game night with the family"),
        ),
    ),
    (
        "Sports",
        (
            ("Running", ("running shoes", "running vest", "race belt", "trail runners"), "jogging and race days"),
            ("Cycling", ("bike helmet", "cycling jersey", "saddle bag", "bike pump"), "rides on road and gravel"),
            ("Yoga", ("yoga mat", "yoga block", "stretch strap", "meditation cushion"), "stretching and balance"),
            (
                "Strength",
                ("dumbbell", "kettlebell", "resistance band", "weight bench"),
                "lifting and strength training",
            ),
        ),
    ),
    (
        "Home",
        (
            ("Bedding", ("duvet cover", "bed sheet", "pillowcase", "throw blanket"), "a well made bed"),
            ("Lamps", ("table lamp", "floor lamp", "pendant lamp", "reading light"), "light in the living room"),
            ("Storage", ("storage basket", "shelf unit", "drawer box", "coat rack"), "tidy rooms and hallways"),
            ("Wall Art", ("framed print", "wall clock", "tapestry", "mirror"), "bare walls that need a picture"),
        ),
    ),
    (
        "Beauty",
        (
            ("Skincare", ("face cream", "cleanser", "serum", "moisturiser"), "clean and soft skin"),
            ("Hair", ("shampoo", "hair mask", "styling brush", "hair oil"), "washing and styling hair"),
            ("Fragrance", ("perfume", "eau de toilette", "body mist", "cologne"), "a scent that lasts"),
            ("Make-up", ("lipstick", "mascara", "eyeshadow palette", "blush"), "colour for lips and eyes"),
        ),
    ),
)
"""(department, ((shelf, product nouns, what it is for) x 4)) x 8."""

STYLES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "rugged",
        ("rugged", "sturdy", "heavy-duty", "tough", "weatherproof"),
        ("Built to take knocks and rain", "Reinforced where it wears", "Made for rough use year after year"),
    ),
    (
        "minimal",
        ("minimal", "plain", "pared-back", "clean-lined", "understated"),
        ("Nothing more than it needs", "Quiet lines and one plain colour", "Simple to use and simple to put away"),
    ),
    (
        "playful",
        ("playful", "colourful", "cheerful", "quirky", "bright"),
        ("Bright patterns with a wink", "Full of colour and fun", "A cheerful surprise for every day"),
    ),
    (
        "elegant",
        ("elegant", "refined", "graceful", "luxurious", "polished"),
        ("Finished with fine detail", "A refined look for special days", "Polished and graceful from every side"),
    ),
)
"""(style, adjectives, sentences) x 4."""

# fmt: off
BRANDS = (
    "Halden", "Orvik", "Lumera", "Brightwater", "Castell", "Norrow", "Tamsin", "Veldt", "Quillon", "Ashby", "Marlow",
    "Kestrel", "Pinewick", "Solenne", "Drumlin", "Faro", "Ingram", "Juniper", "Kobalt", "Larkspur", "Meridian",
    "Nettle", "Osprey", "Pallas", "Riven", "Sable", "Thornbury", "Umber", "Vantage", "Wexley", "Yarrow", "Zephyr",
)
SERIES = (
    "Alto", "Breve", "Coda", "Delta", "Echo", "Fable", "Gala", "Haven", "Iris", "Jade", "Keel", "Lyra", "Mira",
    "Nova", "Opal", "Pico", "Quest", "Ridge", "Sierra", "Terra", "Unity", "Vista", "Willow", "Zenith",
)
COLOURS = (
    "black", "white", "grey", "navy", "teal", "olive", "sand", "rust", "plum", "coral", "amber", "mint",
)
# fmt: on


def category_names(departments: int, shelves_per_department: int) -> list[tuple[str, str]]:
    """The path (department, shelf) of every shelf, by shelf number; where the words run out, names get a number."""
    paths = []
    for d in range(departments):
        department, shelves = DEPARTMENTS[d % len(DEPARTMENTS)]
        for s in range(shelves_per_department):
            name = shelves[s % len(shelves)][0]
            paths.append((_numbered(department, d // len(DEPARTMENTS)), _numbered(name, s // len(shelves))))
    return paths


def titles_and_descriptions(
    shelf: np.ndarray, style: np.ndarray, shelves_per_department: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Titles and descriptions of N items from their shelf (N,) and style (N,) numbers."""
    count = len(shelf)
    department, place = shelf // shelves_per_department, shelf % shelves_per_department
    shelf_row = (department % len(DEPARTMENTS)) * 4 + place % 4
    style_row = style % len(STYLES)
    nouns = _table([entry[1] for _, shelves in DEPARTMENTS for entry in shelves])
    uses = np.array([entry[2] for _, shelves in DEPARTMENTS for entry in shelves], dtype=object)
    adjectives, sentences = _table([entry[1] for entry in STYLES]), _table([entry[2] for entry in STYLES])
    noun = _draw(nouns, shelf_row, rng)
    other_noun = _draw(nouns, shelf_row, rng)
    brand = np.array(BRANDS, dtype=object)[rng.integers(len(BRANDS), size=count)]
    series = np.array(SERIES, dtype=object)[rng.integers(len(SERIES), size=count)]
    colour = np.array(COLOURS, dtype=object)[rng.integers(len(COLOURS), size=count)]
    title = brand + " " + series + " " + _draw(adjectives, style_row, rng) + " " + noun + ", " + colour
    description = (
        "A " + _draw(adjectives, style_row, rng) + " " + other_noun + " for " + uses[shelf_row]
        + ". " + _draw(sentences, style_row, rng) + "."
    )  # fmt: skip
    return tuple(title), tuple(description)


def _table(rows: list[tuple[str, ...]]) -> np.ndarray:
    """Equally long word lists as one object array (rows, words)."""
    return np.array([list(row) for row in rows], dtype=object)


def _draw(table: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random word of each given row."""
    return table[rows, rng.integers(table.shape[1], size=len(rows))]


def _numbered(name: str, lap: int) -> str:
    return name if lap == 0 else f"{name} {lap + 1}"
