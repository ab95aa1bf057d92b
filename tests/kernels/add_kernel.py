"""`python add_kernel.py build|load STUBS`: a Triton kernel for two architectures, without a GPU."""

import sys
from pathlib import Path

import torch
import triton
import triton.language as tl
from skiff.kernels.offline import load_stub, offline_gpu, recorded


@triton.jit
def add(one, other, total, count, SIZE: tl.constexpr):  # noqa: N803
    """total = one + other, of `count` numbers."""
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = places < count
    tl.store(
        total + places, tl.load(one + places, inside) + tl.load(other + places, inside), inside
    )


load_stub(Path(sys.argv[2]))
numbers = torch.zeros(16)
with recorded(build=sys.argv[1] == "build") as seen:
    for capability in (80, 90):
        with offline_gpu(capability):
            add[(1,)](numbers, numbers, numbers, 16, SIZE=16)
print(f"{seen.asked} asked, missed {seen.missed}")
