"""Which pages a search puts first."""

# What a person looks for comes before the lists and the history in a search.
BOOST = {
    "guides/": 4,
    "moving/": 2,
    "reference/": 1,
    "recipes/": 1,
    "design/": 0.3,
    "changelog": 0.1,
}


def factor_of(place: str) -> float:
    return next((factor for start, factor in BOOST.items() if place.startswith(start)), 2)
