"""Mutation operators on small sources."""

import ast
import difflib

import pytest
from skiff.tasks.mutate import mutants


def changed_lines(source: str) -> set[str]:
    found = set()
    for mutant in mutants(source):
        text = mutant.applied(source)
        if text is not None:
            added = [
                line[1:].strip()
                for line in difflib.ndiff(source.splitlines(), text.splitlines())
                if line.startswith("+")
            ]
            assert len(added) == 1, added
            found.add(added[0])
    return found


@pytest.mark.parametrize(
    ("line", "bugs"),
    [
        ("return a < b", {"return a <= b", "return None"}),
        ("return (a) is  not (b)", {"return (a) is (b)", "return None"}),
        ("x = a not in b", {"x = a in b"}),
        ("x = a and b", {"x = a or b"}),
        ("x = a  +  b", {"x = a  -  b"}),
        ("x = 'é' + b", {"x = 'é' - b"}),
        ("x = not a", {"x = a"}),
        ("x = 7", {"x = 8"}),
        ("x = True", {"x = False"}),
        ("x += y", {"pass"}),
        ("f(a, b)", {"f(b, a)", "pass"}),
        ("f(*a, b)", {"pass"}),
        ("return", set()),
        ("return None", set()),
        ("x: int = y", set()),
    ],
)
def test_operators(line: str, bugs: set[str]) -> None:
    assert changed_lines(f"def f(a, b):\n    {line}\n") == bugs


def test_conditions_are_turned_round() -> None:
    assert "if not (a):" in changed_lines("def f(a):\n    if a:\n        return\n")


def test_jumps() -> None:
    bugs = changed_lines("def f(a):\n    for _ in a:\n        break\n")
    assert bugs == {"continue"}


@pytest.mark.parametrize(
    "source",
    [
        "x = 1 < 2\n",
        "class C:\n    size = 3\n",
        'def f(a):\n    """Less than 1 < 2."""\n',
        "@decorate(1)\ndef f(a=1):\n    pass\n",
    ],
)
def test_only_what_runs_in_functions_changes(source: str) -> None:
    assert mutants(source) == []


def test_methods_have_dotted_names() -> None:
    source = "class C:\n    def m(self):\n        def inner():\n            return 1\n"
    assert {mutant.function for mutant in mutants(source)} == {"C.m.inner"}


def test_the_rest_of_the_text_stays(tmp_path: object) -> None:
    source = "# ü\r\ndef f(a):  # comment\r\n    return (a   ==\r\n            1)\r\n"
    for mutant in mutants(source):
        text = mutant.applied(source)
        assert text is not None
        assert text.startswith("# ü\r\ndef f(a):  # comment\r\n")
        ast.parse(text)


def test_what_is_no_python_any_more_is_none() -> None:
    source = "def f(a):\n    return [x for x in (1, 2)]\n"
    broken = mutants(source)[0]
    assert broken.applied("def f(") is None
