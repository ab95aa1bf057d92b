"""One OpenHands conversation in a thread, and how its end reads as a stop reason."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openhands.sdk import Agent, LocalConversation, LocalWorkspace
from openhands.sdk.conversation.exceptions import ConversationRunError
from openhands.sdk.conversation.state import ConversationExecutionStatus

from skiff.agents.episode import Episode, Stop
from skiff.agents.openhands.llm import make_llm
from skiff.agents.openhands.session import open_session
from skiff.agents.openhands.tools import make_tools
from skiff.agents.prompts import OPENHANDS_SYSTEM
from skiff.agents.trajectory import StopReason
from skiff.errors import InfraError
from skiff.tasks.task import Task


async def run(episode: Episode) -> Stop:
    """Converse until the agent finishes, is stuck or has used its turns.

    Raises ContextFullError, TaskError (first prompt too long) and InfraError. The thread of the
    conversation has ended when this returns or raises, also when it is cancelled.
    """
    with (
        tempfile.TemporaryDirectory(prefix="skiff-agent-") as scratch,
        open_session(episode) as (key, session),
        ThreadPoolExecutor(1, thread_name_prefix="openhands") as pool,
    ):
        conversation = asyncio.get_running_loop().run_in_executor(
            pool, _converse, key, episode.task, episode.agent.max_turns, scratch
        )
        try:
            await asyncio.wait([conversation])
        finally:
            await session.end()
            await asyncio.wait([conversation])
            error = conversation.exception()
        if failure := session.failure or error:
            raise failure
        stop = conversation.result()
    if stop.reason is StopReason.FINISHED:
        episode.turn.action = "finish"
    return stop


def agent_settings(session: str, task: Task) -> dict[str, Any]:
    """The arguments of the SDK's Agent.

    The prompt is given inline: a prompt file would be looked up beside the module of the agent's
    class, where a subclass from elsewhere has none.
    """
    return {
        "llm": make_llm(session),
        "tools": make_tools(session),
        "system_prompt": OPENHANDS_SYSTEM.format(workdir=task.workdir),
        "security_policy_filename": "",
        "include_default_tools": ["FinishTool"],
        "condenser": None,
    }


def _converse(session: str, task: Task, max_turns: int, scratch: str) -> Stop:
    """Blocks; runs in a thread of its own."""
    conversation = LocalConversation(
        agent=Agent(**agent_settings(session, task)),
        workspace=LocalWorkspace(working_dir=scratch),
        max_iteration_per_run=max_turns,
        stuck_detection=True,
        visualizer=None,
    )
    try:
        conversation.send_message(task.prompt)
        conversation.run()
        return _stop(conversation.state.execution_status)
    except ConversationRunError as error:
        raise InfraError(f"the OpenHands SDK failed: {error.__cause__!r}", where=task.id) from error
    finally:
        conversation.close()


def _stop(status: ConversationExecutionStatus) -> Stop:
    """The only ERROR that does not raise is that of max_iteration_per_run."""
    match status:
        case ConversationExecutionStatus.FINISHED:
            return Stop(StopReason.FINISHED)
        case ConversationExecutionStatus.STUCK:
            return Stop(StopReason.STUCK, "the OpenHands stuck detector")
        case ConversationExecutionStatus.ERROR:
            return Stop(StopReason.ITERATIONS)
        case _:
            raise InfraError(f"the OpenHands SDK stopped in state {status}")
