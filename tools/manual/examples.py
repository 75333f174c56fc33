"""Examples for the reference, of the names whose docstring has none: `examples.md`.

Under a heading with names stands a session for all of them, without the imports at its beginning.
"""

import functools
import re
from pathlib import Path

PAGE = Path(__file__).parent / "examples.md"
IMPORTS = {
    "jax": "import jax", "jnp": "import jax.numpy as jnp", "optax": "import optax",
    "nnx": "from refax import nnx",
}  # fmt: skip


@functools.cache
def examples() -> dict[str, str]:
    """Name below `nnx` → what is said, and a session with its imports."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        names, _, body = part.partition("\n\n")
        about, mark, session = body.partition(">>> ")
        needed = [line for n, line in IMPORTS.items() if re.search(rf"\b{n}\.", session)]
        imports = "".join(f">>> {line}\n" for line in needed)
        text = f"{about}```pycon\n{imports}{mark}{session.strip()}\n```\n"
        found.update(dict.fromkeys(names.split(), text))
    return found
