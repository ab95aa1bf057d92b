"""The `openhands` agent: the OpenHands SDK's own loop, with the policy and the sandbox put in.

`LocalConversation` runs in a thread on an empty scratch folder; its language model answers from the
policy token-in, token-out (llm.py), its tools act in the sandbox (tools.py). Both reach the
trajectory by a session key (session.py), so agent and model hold plain data only: a frozen agent
needs no attribute set, and copying one copies no lock.

Importing this package imports the SDK, which takes seconds. Not covered: condensers (they rewrite
the history, and with it the trained prefix), native function calling, images.
"""

from skiff.agents.openhands import environment  # noqa: F401  before the SDK
from skiff.agents.openhands.agent import run

__all__ = ["run"]
