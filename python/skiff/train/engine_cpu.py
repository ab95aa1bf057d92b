"""verl's FSDP2 engines for device "cpu", registered through verl's EngineRegistry.

Two details of the stock engines need an accelerator: the reference policy is offloaded through
pinned memory, and the critic asks for flash attention by name. Everything else is inherited.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import (
    FSDPEngineWithLMHead,
    FSDPEngineWithValueHead,
)


@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")
class CpuEngineWithLMHead(FSDPEngineWithLMHead):
    """Actor and reference policy."""

    def _build_fsdp_module(self, module: Any) -> Any:
        # There is nowhere to offload to: weights already live in host memory.
        config: Any = self.engine_config
        self.engine_config: Any = dataclasses.replace(config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config


@EngineRegistry.register(model_type="value_model", backend=["fsdp2"], device="cpu")
class CpuEngineWithValueHead(FSDPEngineWithValueHead):
    """Critic: one value per token."""

    def _build_module(self) -> Any:
        import torch
        from transformers import AutoModelForTokenClassification

        config = self.model_config.hf_config
        config.num_labels = 1
        config.classifier_dropout = 0.0
        return AutoModelForTokenClassification.from_pretrained(
            self.model_config.local_path,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
