"""What vLLM asks of a model's class before an engine starts, asked while the image is made.

vLLM starts a process with all of its imports for it (12 s on a node with an H200) and keeps the
answer as a file by the digest of the model's source. Not covered: models that are not named here;
the first start of one asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

MODELS = ("Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM")


def inspect_models() -> list[str]:
    """Have vLLM know the models' answers; returns the models that it had to ask.

    It asks in this process, which has no GPU that it could take too early.
    """
    from vllm.model_executor.models import registry

    asked = []

    def ask(call: Callable[[], Any]) -> Any:
        asked.append(model)
        return call()

    with patch.object(registry, "_run_in_subprocess", ask):
        for model in MODELS:
            registry.ModelRegistry.models[model].inspect_model_cls()
    return asked
