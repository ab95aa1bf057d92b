"""The SDK's language model, answered by the policy token-in, token-out.

Whatever the SDK would send (it drops temperature, top_p and top_k for some model names) is not
read: the trajectory's own sampling parameters go to the policy. Function calls are XML in the text.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from litellm.types.utils import Choices, ModelResponse
from litellm.types.utils import Message as ResponseMessage
from openhands.sdk import LLM
from openhands.sdk.llm.mixins.fn_call_converter import (
    convert_fncall_messages_to_non_fncall_messages,
)

from skiff.agents.openhands.session import find_session
from skiff.agents.tokens import Message

MODEL = "hosted_vllm/policy"
_SELF_REPORTS = {"security_risk", "summary"}  # the SDK asks for them in every call


class PolicyLLM(LLM):
    """An LLM without a server. `session` is a key, so instances can be copied and serialised."""

    session: str

    def _transport_call(self, *, messages: list[dict[str, Any]], **_: Any) -> ModelResponse:
        session = find_session(self.session)
        text = session.call(session.answer([_plain(message) for message in messages]))
        choice = Choices(message=ResponseMessage(role="assistant", content=text))
        return ModelResponse(id=uuid4().hex, model=self.model, choices=[choice])

    def pre_request_prompt_mock(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        kwargs: dict[str, Any],
        include_security_params: bool = False,
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The SDK's XML prompt without its example conversation and self-reports: a fifth of the
        tokens, which every trajectory carries."""
        return convert_fncall_messages_to_non_fncall_messages(
            messages, [_essential(tool) for tool in tools], add_in_context_learning_example=False
        ), kwargs

    async def _atransport_call(self, *, messages: list[dict[str, Any]], **_: Any) -> ModelResponse:
        return await asyncio.to_thread(self._transport_call, messages=messages)


def make_llm(session: str, *, model: str = MODEL) -> PolicyLLM:
    """The model of one session; `model` is a name for the SDK only."""
    return PolicyLLM(
        session=session,
        model=model,
        api_key="none",
        native_tool_calling=False,
        disable_stop_word=True,
        capability_overrides={"supports_reasoning_effort": False},
        num_retries=0,
        input_cost_per_token=0.0,
        output_cost_per_token=0.0,
    )


def _plain(message: dict[str, Any]) -> Message:
    """The SDK's message with its text parts joined."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    return {"role": message["role"], "content": content}


def _essential(tool: dict[str, Any]) -> dict[str, Any]:
    """A function description cut to its first paragraph, without the parameters for self-reports.

    The SDK goes on accepting those; the policy just is not told of them.
    """
    function = tool["function"]
    parameters = function["parameters"]
    properties = {
        name: value for name, value in parameters["properties"].items() if name not in _SELF_REPORTS
    }
    description = function["description"].partition("\n\n")[0]
    parameters = {**parameters, "properties": properties}
    return {**tool, "function": {**function, "description": description, "parameters": parameters}}
