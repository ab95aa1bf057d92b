"""What the driver says of the GPU: through a real library of that name, and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.kernels.gpu import Gpu, first_gpu


def test_a_mig_slice_has_its_own_name(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    assert first_gpu() == Gpu("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "8.0", "13.2")


def test_a_driver_without_a_gpu_says_its_error(
    stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(stubs))  # each of its functions fails
    with pytest.raises(InfraError, match="cuInit failed with CUDA error 34"):
        first_gpu()


def test_without_a_driver_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"")  # hides one that this machine may have
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(InfraError, match="no NVIDIA driver") as caught:
        first_gpu()
    assert "gres" in str(caught.value)
