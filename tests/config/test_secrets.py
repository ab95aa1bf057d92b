"""Secrets come from the environment or a private file, and never show in an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from skiff.config.secrets import check_in_file, load_secrets, without_secrets
from skiff.errors import ConfigError

VALUE = "hunter2-hunter2"


@pytest.fixture
def secrets_file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.touch(mode=0o600)
    return path


def test_none_are_needed(tmp_path: Path) -> None:
    assert load_secrets({}, tmp_path) == {}


def test_they_are_read_from_a_private_file(secrets_file: Path) -> None:
    secrets_file.write_text(f"# keys\n\nexport HF_TOKEN='{VALUE}'\nWANDB_API_KEY = a=b\n")
    found = load_secrets({}, secrets_file.parent)
    assert found == {"HF_TOKEN": VALUE, "WANDB_API_KEY": "a=b"}


def test_the_environment_wins(secrets_file: Path) -> None:
    secrets_file.write_text("HF_TOKEN=file\nWANDB_API_KEY=file\n")
    environment = {"HF_TOKEN": "environment", "WANDB_API_KEY": "", "PATH": "/bin"}
    found = load_secrets(environment, secrets_file.parent)
    assert found == {"HF_TOKEN": "environment", "WANDB_API_KEY": "file"}


def test_the_file_can_be_named(secrets_file: Path, tmp_path: Path) -> None:
    secrets_file.write_text(f"HF_TOKEN={VALUE}")
    elsewhere = tmp_path / "elsewhere"
    found = load_secrets({"SKIFF_SECRETS": str(secrets_file)}, elsewhere)
    assert found == {"HF_TOKEN": VALUE}
    with pytest.raises(ConfigError, match="named by SKIFF_SECRETS but is no file"):
        load_secrets({"SKIFF_SECRETS": str(elsewhere)}, tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_open_to_others_is_refused(secrets_file: Path, mode: int) -> None:
    secrets_file.write_text(f"HF_TOKEN={VALUE}")
    secrets_file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
        load_secrets({}, secrets_file.parent)
    assert f"chmod 600 {secrets_file}" in str(caught.value)
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("line", [f"WANDB_KEY={VALUE}", VALUE, f"HF_TOKEN {VALUE}"])
def test_an_unknown_or_broken_line_is_named_without_its_value(
    secrets_file: Path, line: str
) -> None:
    secrets_file.write_text(f"HF_TOKEN=x\n{line}\n")
    with pytest.raises(ConfigError, match=r"\.env, line 2: expected NAME=value") as caught:
        load_secrets({}, secrets_file.parent)
    assert VALUE not in str(caught.value)


def test_a_virtual_environment_of_that_name_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert load_secrets({}, tmp_path) == {}


def test_a_program_without_need_gets_none_but_the_name_of_the_file(
    secrets_file: Path, tmp_path: Path
) -> None:
    environment = {"HF_TOKEN": VALUE, "WANDB_API_KEY": VALUE, "PATH": "/bin"}
    assert without_secrets(environment, tmp_path / "elsewhere") == {"PATH": "/bin"}
    expected = {"PATH": "/bin", "SKIFF_SECRETS": str(secrets_file)}
    assert without_secrets(environment, secrets_file.parent) == expected


def test_what_a_job_would_not_find_in_the_file_is_refused(secrets_file: Path) -> None:
    folder, environment = secrets_file.parent, {"WANDB_API_KEY": VALUE}
    check_in_file("WANDB_API_KEY", {}, folder)
    for content in ("", "WANDB_API_KEY=another\n"):
        secrets_file.write_text(content)
        with pytest.raises(ConfigError, match="WANDB_API_KEY: is set in the environment") as caught:
            check_in_file("WANDB_API_KEY", environment, folder)
        assert f">>{secrets_file}" in caught.value.remedy
        assert VALUE not in str(caught.value)
    secrets_file.write_text(f"WANDB_API_KEY={VALUE}\n")
    check_in_file("WANDB_API_KEY", environment, folder)


def test_a_file_that_is_no_text_does_not_show(secrets_file: Path) -> None:
    secrets_file.write_bytes(f"HF_TOKEN={VALUE}\xff".encode("latin-1"))
    with pytest.raises(ConfigError, match="is no UTF-8") as caught:
        load_secrets({}, secrets_file.parent)
    assert VALUE not in str(caught.value)
