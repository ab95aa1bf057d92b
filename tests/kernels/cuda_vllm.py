"""`python cuda_vllm.py build|verify LAYER ...`: the architecture layer with vLLM's CPU build.

Stands for the CUDA build, which these tests have no room for: the sources of the kernels are the
same, but the CPU build switches Triton off unless Triton can compile for CPUs. To be quick it takes
one shape and leaves out the samplers, which take three quarters of the time; the build of the image
takes everything.
"""

import importlib
import os
import sys
from types import SimpleNamespace

from triton.backends import backends

os.environ["CUDA_VISIBLE_DEVICES"] = ""
backends["cpu"] = SimpleNamespace(driver=None)
importlib.import_module("vllm.triton_utils")
del backends["cpu"]

from skiff.kernels import engine_calls  # noqa: E402
from skiff.kernels.architecture import main  # noqa: E402

every = engine_calls.shapes
engine_calls.shapes = lambda vocabularies: every(vocabularies)[:1]
engine_calls._sampler = lambda _: None
sys.exit(main())
