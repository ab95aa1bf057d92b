"""Output of a command: kept up to a cap and ended by its nonce, however the stream is cut."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from skiff.runtime.capture import CappedOutput, Capture

NONCE = "0123456789abcdef"


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 400), max_size=6), st.integers(0, 255))
def test_output_is_what_comes_before_the_nonce(
    data: bytes, cuts: list[int], exit_code: int
) -> None:
    stream = data + f"{NONCE} {exit_code}\n".encode() + b"later"
    places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    capture = Capture(NONCE, cap=1 << 20)
    for begin, end in itertools.pairwise(places):
        if capture.exit_code is None:
            capture.feed(stream[begin:end])
    assert capture.exit_code == exit_code
    assert capture.content() == data
    assert capture.dropped == 0


def test_stream_without_nonce_gives_all_that_came() -> None:
    capture = Capture(NONCE, cap=100)
    capture.feed(b"partial 0123")
    assert capture.exit_code is None
    assert capture.content() == b"partial 0123"


@settings(deadline=None)
@given(st.integers(2, 64), st.lists(st.binary(max_size=40), max_size=12))
def test_cap_keeps_both_ends(cap: int, parts: list[bytes]) -> None:
    whole, output = b"".join(parts), CappedOutput(cap)
    for part in parts:
        output.add(part)
    kept, half = output.content(), cap // 2
    if len(whole) <= 2 * half:
        assert kept == whole
    else:
        missing = len(whole) - 2 * half
        assert kept.startswith(whole[:half])
        assert kept.endswith(whole[-half:])
        assert b"[... %d bytes left out ...]" % missing in kept
        assert output.dropped == missing
