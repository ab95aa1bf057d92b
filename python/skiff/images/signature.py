"""Signing an image with the site's key, and checking who signed it.

A key is a PEM file, as `make_key` writes it; Apptainer signs and verifies. One signature at a time:
signing again replaces the one before. Times in it are set to the image's own, so the same image
signed with the same (Ed25519) key is the same file.
Not covered: PGP keys, certificates and their revocation, keys on tokens, keys with a passphrase.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from skiff.apptainer import check_sif, run_sif
from skiff.errors import ConfigError, ImageError, InfraError
from skiff.images.sif import set_times
from skiff.sif import ObjectType, image_time, read_objects

PRIVATE = "skiff-signing-key.pem"
PUBLIC = "skiff-signing-key.pub.pem"
SECONDS = 1800.0  # all bytes of the image are read
_OTHERS = 0o077
# What `apptainer verify` says of objects that were changed, added (in three ways) or removed.
_CHANGED = (
    "integrity compromised",
    "not signed",
    "not associated",
    "signature not found",
    "signed object not found",
)


def make_key(folder: Path) -> tuple[Path, Path]:
    """Write a new pair of keys into `folder` (made when absent): (private, public).

    Only the owner can read the private one. Raises ConfigError when there is a key already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / PRIVATE, folder / PUBLIC
    for path in (private, public):
        if path.exists():
            raise ConfigError(
                "is there already, and images may be signed with it",
                where=str(path),
                remedy="choose another folder",
            )
    with tempfile.TemporaryDirectory(prefix=".key-", dir=folder) as name:
        made, made_public = Path(name, PRIVATE), Path(name, PUBLIC)
        _openssl(["genpkey", "-algorithm", "ed25519", "-out", str(made)])
        _openssl(["pkey", "-in", str(made), "-pubout", "-out", str(made_public)])
        made.chmod(0o600)
        made_public.chmod(0o644)
        made.replace(private)
        made_public.replace(public)
    return private, public


def sign(sif: Path, key: Path) -> None:
    """Sign all of an image with the private key `key`, in the place of an earlier signature.

    The image needs its size again on the disk meanwhile; it is changed whole or not at all. Raises
    ConfigError when the key is absent, no private key or not its owner's alone.
    """
    _check_key(key, "PRIVATE KEY", remedy="`skiff images make-key` writes a pair of keys")
    if key.stat().st_mode & _OTHERS:
        raise ConfigError(
            "can be read or changed by others",
            where=str(key),
            remedy=f"chmod 600 {key}; if it may have been read, make a new one",
        )
    earlier = _signatures(sif)
    with tempfile.TemporaryDirectory(prefix=".sign-", dir=sif.parent) as name:
        copy = Path(name, sif.name)
        shutil.copy2(sif, copy)
        for number in sorted(earlier, reverse=True):
            check_sif(["sif", "del", str(number), str(copy)])
        check_sif(["sign", "--key", str(key), str(copy)], timeout=SECONDS)
        set_times(copy, image_time(sif))
        os.replace(copy, sif)


def verify(sif: Path, public_key: Path) -> None:
    """Check that all of an image is as the owner of `public_key` signed it.

    Raises ImageError when it is unsigned, signed with another key, or changed since; ConfigError
    when the key is absent or no public key.
    """
    _check_key(
        public_key, "PUBLIC KEY", remedy="give the public half of the key it was signed with"
    )
    if not _signatures(sif):
        raise ImageError("is not signed", where=str(sif), remedy="sign it with `skiff images sign`")
    done = run_sif(["verify", "--key", str(public_key), str(sif)], timeout=SECONDS)
    if done.returncode == 0:
        return
    words = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
    if "verify envelope failed" in words[0]:
        raise ImageError(
            "is signed with another key, or its signature is damaged",
            where=str(sif),
            remedy=f"it is not from the owner of {public_key}; get the image or the key again",
        )
    if any(mark in words[0] for mark in _CHANGED):
        raise ImageError(
            f"was changed after it was signed ({words[0].rpartition('integrity: ')[2]})",
            where=str(sif),
            remedy="do not run it; get it again",
        )
    raise InfraError(f"cannot be verified: {words[0]}", where=str(sif))


def _signatures(sif: Path) -> list[int]:
    return [one.number for one in read_objects(sif) if one.type == ObjectType.SIGNATURE]


def _check_key(key: Path, kind: str, *, remedy: str) -> None:
    try:
        text = key.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(
            f"the key cannot be read: {error.strerror}", where=str(key), remedy=remedy
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is no PEM file", where=str(key), remedy=remedy) from error
    if f"{kind}-----" not in text:
        raise ConfigError(f"holds no {kind.lower()}", where=str(key), remedy=remedy)


def _openssl(arguments: list[str]) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise InfraError("openssl is not installed", remedy="install the package openssl")
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=_OTHERS,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise InfraError(f"exit {done.returncode}: {done.stderr.strip()}", where="openssl")
