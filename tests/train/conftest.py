"""A tiny model folder for the trainer's tests."""

from __future__ import annotations

import pytest
from skiff.train import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Qwen3 of one layer with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny.make_tokenizer(folder, ["Repair the folder."], size=300)
    tiny.make_model(folder, tokenizer, layers=1, hidden=64, context_tokens=256)
    return str(folder)
