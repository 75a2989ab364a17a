"""The lanes of a race by name, in the order in which they are shown, and what people call them.

The names are those of the command line's methods; this room knows no decoder, so that the page can
offer them before torch is there.
"""

from __future__ import annotations

MAIN = ("space", "vanilla")
"""The race itself."""
FURTHER = ("generate", "prompt-lookup", "assisted")
"""Off by default: what transformers has (`space_core.peers`). The last one needs a draft model."""
NAMES = {
    "space": "SPACE",
    "vanilla": "vanilla",
    "generate": "generate",
    "prompt-lookup": "prompt lookup",
    "assisted": "assisted",
}
