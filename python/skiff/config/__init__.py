"""Profiles (TOML) -> one validated, frozen `Config`. Floor 0: imports nothing above."""

from skiff.config.load import load_config, load_run_config
from skiff.config.schema import Config

__all__ = ["Config", "load_config", "load_run_config"]
