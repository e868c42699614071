"""Inputs and outputs of Open-Sora 1.2's own code on tiny random weights, and the shapes of its full checkpoint."""

from pathlib import Path

GOLDEN = Path(__file__).parent
TINY = GOLDEN / "opensora-v12-tiny"
