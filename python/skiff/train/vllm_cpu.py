"""vLLM general plugin (entry-point group `vllm.general_plugins`): keep CPU weights loadable.

vLLM's CPU build packs linear weights for oneDNN and leaves an empty tensor behind, after which new
weights cannot be loaded into the running engine ("Attempted to load weight ... into parameter
torch.Size([0])"). RL loads new weights each step, so the packing is switched off. On other
platforms this does nothing.
"""

from __future__ import annotations


def register() -> None:
    """Called by vLLM once in each of its processes."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm import _custom_ops

        _custom_ops._supports_onednn = False
