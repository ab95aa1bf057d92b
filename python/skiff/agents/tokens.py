"""Token-in, token-out: the ids of one trajectory, their mask and their log-probs.

Context (first prompt, observations) becomes ids by verl's continuous-token builders, which know how
each model family closes and opens a turn. Generated ids are kept as the engine returned them and
are never re-encoded. Not covered: images, and templates that rewrite earlier turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skiff.agents.trajectory import Generation
from skiff.config import Config
from skiff.errors import InfraError, TaskError

Message = dict[str, str]  # role ("system" | "user" | "assistant"), content


class ContextFullError(Exception):
    """What comes next does not fit. What stands is complete and ends with a generated id."""


@dataclass(frozen=True)
class Limits:
    """Token counts. `turn` bounds one generation, `response` everything after the first prompt."""

    prompt: int
    response: int
    context: int
    turn: int

    @classmethod
    def from_config(cls, config: Config) -> Limits:
        return cls(
            prompt=config.rollout.prompt_tokens,
            response=config.rollout.response_tokens,
            context=config.model.context_tokens,
            turn=config.agent.turn_tokens,
        )


class TokenBuffer:
    """The ids of one trajectory.

    Call `begin` once, then `generated` and `observe` in turn. Observations stay pending until the
    generation that answers them arrives, so the response always ends with a generated id.
    """

    def __init__(self, tokenizer: Any, builder: Any, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._builder = builder
        self._limits = limits
        self._special = _special_tokens(tokenizer)
        self._messages: list[Message] = []
        self._prompt_length = 0
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._log_probs: list[float] = []
        self._pending: Any = None  # verl's MergeResult of an observation not yet answered

    @classmethod
    def create(cls, tokenizer: Any, model_type: str, limits: Limits) -> TokenBuffer:
        """`model_type` is that of the model's config.json; it selects the template's family."""
        # Importing verl takes seconds; the command line must not pay for it.
        from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

        builder = create_continuous_token_builder(tokenizer, hf_model_type=model_type)
        return cls(tokenizer, builder, limits)

    @property
    def prompt_ids(self) -> list[int]:
        """[P] the first prompt."""
        return self._ids[: self._prompt_length]

    @property
    def response_ids(self) -> list[int]:
        """[R] all that followed, without a pending observation."""
        return self._ids[self._prompt_length :]

    @property
    def response_mask(self) -> list[int]:
        """[R] 1 = generated, 0 = observed."""
        return list(self._mask)

    @property
    def log_probs(self) -> list[float]:
        """[R] the engine's, 0.0 on observations."""
        return list(self._log_probs)

    @property
    def engine_prompt(self) -> list[int]:
        """The ids of the next engine call: everything so far, and the pending observation."""
        return list(self._ids if self._pending is None else self._pending.token_ids)

    def begin(self, messages: Sequence[Message], *, task_id: str) -> None:
        """Render the first prompt. Raises TaskError when it is too long."""
        self._messages = self._plain(messages)
        self._ids = self._builder.build_initial_tokens(self._messages)
        self._prompt_length = len(self._ids)
        if self._prompt_length > self._limits.prompt:
            raise TaskError(
                f"the first prompt has {self._prompt_length} tokens, more than"
                f" rollout.prompt_tokens ({self._limits.prompt})",
                where=task_id,
                remedy="raise rollout.prompt_tokens, or leave the task out by tasks.skip_list",
            )

    def observe(self, messages: Sequence[Message]) -> None:
        """Put context behind the last generation.

        Raises ContextFullError, and changes nothing, when no token of an answer would fit behind.
        """
        updated = self._messages + self._plain(messages)
        merge = self._builder.merge_context_tokens(self._messages, updated, self._ids)
        if self._room(len(merge.token_ids)) < 1:
            raise ContextFullError(
                f"{len(merge.token_ids) - len(self._ids)} observed tokens do not fit"
            )
        self._messages, self._pending = updated, merge

    def room(self) -> int:
        """The most tokens the next generation may have, at least 1. Raises ContextFullError."""
        room = self._room(len(self.engine_prompt))
        if room < 1:
            raise ContextFullError("no token is left for another answer")
        return room

    def generated(self, generation: Generation, text: str) -> None:
        """Append an answer to `engine_prompt`; `text` is its decoded form, for the history.

        Raises InfraError when the engine returned no ids, or not one log-prob an id.
        """
        ids, log_probs = generation.token_ids, generation.log_probs
        if not ids or len(ids) != len(log_probs):
            raise InfraError(f"the engine returned {len(ids)} ids and {len(log_probs)} log-probs")
        if self._pending is not None:
            self._merge(self._pending, None)
            self._pending = None
        self._merge(self._builder.merge_assistant_tokens(self._ids, ids), log_probs)
        self._messages = [*self._messages, {"role": "assistant", "content": text}]

    def _merge(self, merge: Any, log_probs: list[float] | None) -> None:
        self._mask, self._log_probs = self._builder.align_response_metadata(
            merge, self._mask, self._log_probs, assistant_logprobs=log_probs
        )
        self._ids = merge.token_ids

    def _room(self, length: int) -> int:
        limits = self._limits
        response = length - self._prompt_length
        return min(limits.turn, limits.response - response, limits.context - length)

    def _plain(self, messages: Sequence[Message]) -> list[Message]:
        """Copies whose text cannot open or close a turn: a file that contains `<|im_end|>` must
        not end the observation it is shown in."""
        return [
            {"role": message["role"], "content": _defuse(message["content"], self._special)}
            for message in messages
        ]


def clip(text: str, limit: int) -> str:
    """`text`, its middle replaced by a marker where it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    marker = f"\n[... {len(text) - limit} characters cut ...]\n"
    return text[:head] + marker + text[len(text) - tail :]


def _special_tokens(tokenizer: Any) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]


def _defuse(text: str, special: Sequence[str]) -> str:
    for token in special:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
