"""Compiled kernels that a start finds instead of making them: layers, packs, and the choice."""
