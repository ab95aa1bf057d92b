"""The hand-written Triton kernels that vLLM 0.24 runs beside the model, called as vLLM calls them.

Each is called through vLLM's own function, with CPU tensors of the engine's dtypes and strides, so
that dtype, alignment, `== 1` and constants are what a start on a GPU has. Both model runners are
covered: the slot mapping of the first; inputs, block tables and every step of the sampler of the
second, which Qwen, Llama, Mistral and others get by default. Not covered: attention written in
Triton (the FlashAttention of the wheel is compiled), LoRA, quantisation, mixtures of experts,
speculation, context parallelism, more than one group of KV caches, top-k or top-p alone,
vocabularies that are not divisible by 16, and the zeroing of KV blocks, whose constants come from
the model.

Needs `offline_gpu`, and `CUDA_VISIBLE_DEVICES=""` before vLLM is imported: without GPUs vLLM
switches Triton off otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from vllm.v1.sample.ops.topk_topp_triton import (
    _NORMAL_CDF_TO_SIGMA_TABLE,
    _PERCENTILE_TO_STD_TABLE,
    _topk_topp_kernel,
)
from vllm.v1.worker import block_table as first_block_table
from vllm.v1.worker.gpu import block_table, buffer_utils, input_batch, structured_outputs
from vllm.v1.worker.gpu.sample import (
    bad_words,
    gumbel,
    logit_bias,
    logprob,
    min_p,
    penalties,
    prompt_logprob,
)

_BLOCK = 16  # tokens of a KV block, vLLM's default on CUDA


@dataclass(frozen=True)
class EngineShape:
    """The numbers of an engine that reach its hand-written kernels.

    Triton makes a variant of a kernel for numbers divisible by 16 and one for others; only the
    vocabulary counts as such.
    """

    vocabulary: int
    sequences: int  # max_num_seqs
    model_length: int  # max_model_len, in tokens
    batched_tokens: int  # max_num_batched_tokens


def shapes(vocabularies: Sequence[int]) -> list[EngineShape]:
    """Shapes that together use every variant: each number divisible by 16, and not."""
    aligned = [EngineShape(one, 256, 4096, 8192) for one in vocabularies]
    odd = [
        EngineShape(vocabularies[0], sequences, length, batched)
        for sequences in (256, 250)
        for length in (4096, 4100)
        for batched in (8192, 8200)
    ]
    return [*aligned, *odd[1:]]


def call_kernels(shape: EngineShape) -> None:
    """Run every covered kernel once in each form that an engine of `shape` uses."""
    _first_runner(shape)
    _inputs(shape)
    _block_tables(shape)
    for logits_dtype in (torch.bfloat16, torch.float32):
        _sampler_of_logits(shape, logits_dtype)
    _sampler(shape)


def _first_runner(shape: EngineShape) -> None:
    blocks = -(-shape.model_length // _BLOCK)
    table = first_block_table.BlockTable(
        _BLOCK,
        shape.sequences,
        -(-blocks // 8) * 8,  # vLLM rounds up to 128 tokens
        shape.batched_tokens,
        pin_memory=False,
        device=torch.device("cpu"),
        kernel_block_size=_BLOCK,
        cp_kv_cache_interleave_size=1,
    )
    table.compute_slot_mapping(3, _ints(4), _longs(7))


def _inputs(shape: EngineShape) -> None:
    state = _ints(shape.sequences)
    requests, starts, counts = _ints(2), _ints(3), _ints(2)
    tokens = torch.zeros(shape.sequences, shape.model_length, dtype=torch.int32)
    last_sampled = torch.zeros(shape.sequences, 1, dtype=torch.int64)
    drafts = torch.zeros(shape.sequences, 0, dtype=torch.int64)
    input_ids = _ints(shape.batched_tokens)
    input_batch.prepare_prefill_inputs(input_ids, state, requests, starts, tokens, state, state)
    input_batch.prepare_pos_seq_lens(requests, starts, state, _longs(shape.batched_tokens), state)
    input_batch.combine_sampled_and_draft_tokens(
        input_ids, requests, last_sampled, starts, counts, state, drafts, starts, 2
    )
    input_batch.get_num_sampled_and_rejected(counts, counts, starts, requests, state)
    input_batch.post_update_num_computed_tokens(requests, state, starts)
    bins = torch.zeros(shape.sequences, shape.vocabulary, dtype=torch.int32)
    sampled = _longs(2).view(-1, 1)
    for counted in (bins, None):
        input_batch.post_update(
            requests, state, last_sampled, counted, sampled, counts, counts, starts, tokens, state
        )
    prompt_logprob.get_prompt_logprobs_token_ids(5, starts, requests, state, tokens)
    for rows in (state, tokens, torch.zeros(shape.sequences, _blocks(shape), dtype=torch.int32)):
        _staged_write(rows)


def _staged_write(rows: torch.Tensor) -> None:
    buffer_utils._apply_write_kernel[(2,)](
        rows,
        rows.stride(0),
        _ints(2),
        _ints(2),
        torch.zeros(2, dtype=rows.dtype),
        _ints(2),
        None,
        BLOCK_SIZE=1024,
        MULTI_GROUP=False,
    )


def _block_tables(shape: EngineShape) -> None:
    pointers = torch.zeros(1, dtype=torch.uint64)
    tables = SimpleNamespace(
        num_kv_cache_groups=1,
        block_table_ptrs=pointers,
        input_block_table_ptrs=pointers,
        block_table_strides=_longs(1),
        num_blocks=SimpleNamespace(gpu=torch.zeros(1, shape.sequences, dtype=torch.int32)),
        input_block_tables=[],
        max_num_batched_tokens=shape.batched_tokens,
        block_sizes_tensor=_ints(1),
        slot_mappings=torch.zeros(1, shape.batched_tokens, dtype=torch.int64),
        cp_rank=0,
        cp_size=1,
        cp_interleave=1,
    )
    of = block_table.BlockTables
    of.gather_block_tables(tables, _ints(2), 2)
    of.compute_slot_mappings(tables, _ints(2), _ints(3), _longs(5), 5)


def _sampler_of_logits(shape: EngineShape, dtype: torch.dtype) -> None:
    """What reads the model's logits as they are, or the sampler's copy in float32."""
    logits = torch.zeros(2, shape.vocabulary, dtype=dtype)
    _grammar(shape, dtype)
    for logprobs in (0, 1, 5):  # of the sampled token (verl); of prompts; vLLM's warm-up
        logprob.compute_topk_logprobs(logits, logprobs, _longs(2))


def _sampler(shape: EngineShape) -> None:
    logits = torch.zeros(2, shape.vocabulary)
    requests, positions, ids = _ints(2), _longs(2), _ints(2)
    state, floats = _ints(shape.sequences), torch.ones(shape.sequences)
    tokens = torch.zeros(shape.sequences, shape.model_length, dtype=torch.int32)
    mask = torch.zeros(shape.sequences, -(-shape.vocabulary // 32), dtype=torch.int32)
    bins = torch.zeros(shape.sequences, shape.vocabulary, dtype=torch.int32)
    gumbel.apply_temperature(logits, requests, floats)
    gumbel.gumbel_sample(
        logits, requests, floats, _longs(shape.sequences), positions, apply_temperature=False
    )
    min_p.apply_min_p(logits, requests, floats)
    penalties.apply_penalties(logits, requests, ids, ids, floats, floats, floats, mask, bins)
    penalties.bincount(requests, tokens, state, state, mask, bins, 2)
    biases = torch.zeros(shape.sequences, logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS)
    allowed = torch.zeros(shape.sequences, logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS, dtype=torch.int32)
    stops = torch.zeros(shape.sequences, logit_bias.MAX_NUM_STOP_TOKEN_IDS, dtype=torch.int32)
    logit_bias.apply_logit_bias(
        logits,
        requests,
        positions,
        state,
        allowed,
        state,
        biases.to(torch.int32),
        biases,
        state,
        state,
        stops,
    )
    words = torch.zeros(shape.sequences, bad_words.MAX_BAD_WORDS_TOTAL_TOKENS, dtype=torch.int32)
    offsets = torch.zeros(shape.sequences, bad_words.MAX_NUM_BAD_WORDS + 1, dtype=torch.int32)
    bad_words.apply_bad_words(
        logits, requests, words, offsets, state, tokens, state, state, ids, ids, 2
    )
    for rows in (words, offsets, biases, stops):
        _staged_write(rows)
    for rows in (9, 16):  # smaller batches are sorted by PyTorch
        _top_k_top_p(shape, rows)


def _grammar(shape: EngineShape, dtype: torch.dtype) -> None:
    """As `StructuredOutputsWorker` does in the warm-up; its own code needs streams of a GPU."""
    logits = torch.zeros(2, shape.vocabulary, dtype=dtype)
    bitmask = torch.zeros(2, -(-shape.vocabulary // 32), dtype=torch.int32)
    structured_outputs._apply_grammar_bitmask_kernel[(2, 1)](
        logits,
        logits.stride(0),
        _ints(2),
        bitmask,
        bitmask.stride(0),
        shape.vocabulary,
        BLOCK_SIZE=8192,
    )


def _top_k_top_p(shape: EngineShape, rows: int) -> None:
    """As `apply_top_k_top_p_triton` does on CUDA; its own code asks the GPU for its size."""
    logits = torch.zeros(rows, shape.vocabulary)
    _topk_topp_kernel[(rows,)](
        logits,
        logits.stride(0),
        torch.empty_like(logits),
        logits.new_tensor(_PERCENTILE_TO_STD_TABLE),
        logits.new_tensor(_NORMAL_CDF_TO_SIGMA_TABLE),
        _ints(rows),
        torch.ones(rows),
        BATCH_SIZE=rows,
        MASK_VALUE=float("-inf"),
        VOCAB_SIZE=shape.vocabulary,
        BLOCK_SIZE=8192,
        BLOCK_SIZE_TRUNC=4096,
        TOPK_ENABLED=True,
        TOPP_ENABLED=True,
    )


def _blocks(shape: EngineShape) -> int:
    return -(-shape.model_length // _BLOCK)


def _ints(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


def _longs(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)
