"""Inks of figures, readable on white and on near-black, since backgrounds are transparent."""

from __future__ import annotations

INK = "#737b8c"
GRID = "rgba(128, 136, 150, 0.22)"
ACCENT = "#6366f1"
FONT = "IBM Plex Sans, system-ui, sans-serif"
LANES = {
    "space": ACCENT,
    "vanilla": "#8b93a3",
    "generate": "#3b8fc4",
    "prompt-lookup": "#b7791f",
    "assisted": "#c2574f",
}
"""Of each lane. None of them is a mark's colour."""
