"""Words that several rooms tell alike. No torch here."""

from __future__ import annotations


def drafts(first: int, last: int) -> str:
    """Drafts by their numbers, at the start of a sentence."""
    if first == last:
        return f"Draft {first}"
    return f"Drafts {first} {'and' if last == first + 1 else 'to'} {last}"
