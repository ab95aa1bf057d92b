"""Client of the runtime server: start a sandbox, run commands, move files, stop it."""

from skiff.sandbox.client import CommandResult, RuntimeClient, Sandbox, SandboxSpec

__all__ = ["CommandResult", "RuntimeClient", "Sandbox", "SandboxSpec"]
