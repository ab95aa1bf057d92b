"""A tiny Qwen3 with its own tokenizer, made in seconds without a hub.

For the demo and the tests. The architecture is the real `Qwen3ForCausalLM`, so every line of verl
and vLLM that a large Qwen3 meets is met here too. Not covered: a model that knows anything; see
warm_start.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skiff.tasks import shell

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# ChatML as Qwen writes it, without tools and thinking, so that a turn costs five extra tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    folder: Path | None = None, texts: Iterable[str] = (), *, size: int = 2048
) -> Any:
    """A byte-level BPE tokenizer trained on `texts` (deterministic); saved when `folder` is given.

    Returns a `PreTrainedTokenizerFast` of at most `size` ids, `<|im_end|>` as end of sequence.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(
    folder: Path, tokenizer: Any, *, layers: int, hidden: int, context_tokens: int, seed: int = 0
) -> Any:
    """A randomly initialised `Qwen3ForCausalLM` in float32, saved to `folder` with its tokenizer.

    `hidden` must be a multiple of 64: vLLM's CPU attention supports head size 64 (16 is refused).
    The vocabulary is exactly len(tokenizer): verl masks ids beyond it in the engine, and the
    engine's log-probs would then differ from the trainer's.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    heads = max(2, hidden // 32)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        initializer_range=0.1,  # a narrow model learns sooner from a wide start
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    save(folder, model, tokenizer)
    return model


def make_shell_model(folder: Path, *, context_tokens: int = 6144) -> None:
    """A random model of 2 layers, saved to `folder`, whose tokenizer knows the words of the shell
    tasks, so that their prompts are short. What it writes means nothing."""
    tokenizer = make_shell_tokenizer(folder)
    make_model(folder, tokenizer, layers=2, hidden=64, context_tokens=context_tokens)


def make_shell_tokenizer(folder: Path) -> Any:
    """A tokenizer of the shell tasks' words, saved to `folder`."""
    tasks = shell.tasks("train")[:256]
    texts = [text for task in tasks for text in (task.prompt, *(f.content for f in task.files))]
    return make_tokenizer(folder, texts)


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write model, generation settings and tokenizer as a Hugging Face folder."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
