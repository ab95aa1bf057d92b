"""verl's `AgentLoopBase` for a start that only makes or proves compiled kernels: no sandbox.

The engine answers the tasks' first prompts, and rewards alternate, so that every trajectory has an
advantage and the update runs as in training. Not covered: turns and observations. Kernels do not
know of them: the engine sees longer prompts, the trainer sees a mask.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from skiff.config import load_run_config
from skiff.train.agent_loop import EnginePolicy

LEAST_TOKENS = 4


class KernelLoop(AgentLoopBase):
    """One generation, of another length for each trajectory of a group."""

    def __init__(self, *args: Any, hf_model_type: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_model_type=hf_model_type, **kwargs)
        self.skiff = load_run_config(Path(os.environ["SKIFF_RUN"]) / "config.toml")

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[AgentLoopOutput]:
        """One trajectory; its reward is 0 or 1 by its place in the group."""
        number = int(row["session_id"])
        text = "\n".join(message["content"] for message in row["raw_prompt"])
        prompt_ids = self.tokenizer.encode(text)[: self.skiff.rollout.prompt_tokens]
        most = min(self.skiff.agent.turn_tokens, self.skiff.rollout.response_tokens)
        tokens = max(LEAST_TOKENS, most // (1 + number % 4))
        policy = EnginePolicy(self.server_manager)
        answer = await policy.generate(
            f"{row['uid']}-{number}",
            prompt_ids,
            {**sampling_params, "max_tokens": tokens, "ignore_eos": True},
        )
        reward = float(number % 2)
        return [
            AgentLoopOutput(
                prompt_ids=prompt_ids,
                response_ids=answer.token_ids,
                response_mask=[1] * len(answer.token_ids),
                response_logprobs=answer.log_probs,
                reward_score=reward,
                num_turns=2,
                metrics=AgentLoopMetrics(),
                extra_fields={
                    "reward_extra_info": {"solved": reward},
                    "min_global_steps": min(policy.versions),
                    "max_global_steps": max(policy.versions),
                },
            )
        ]
