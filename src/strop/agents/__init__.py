"""Conversations with tools and environments: what the model says, what answers it, and the ids of both.

| file | what it is for |
|---|---|
| `call_formats.py` | how models write calls of tools, and which way a template writes them |
| `spoken.py` | one turn of the model: thoughts, words, calls |
| `template.py` | a chat template at the turns of a conversation |
| `conversation.py` | one trajectory, as messages and as ids |
| `tools.py` | functions as tools |
| `environments.py`, `slots.py` | environments, and the threads or processes that they live in |
| `threads.py` | threads that are left behind where they hang |
| `openenv.py` | a client of an OpenEnv server as an environment |
| `verifiers_tasks.py` | tasks of the `verifiers` package as rows and environments |
| `turns.py` | the loop: the model writes, tools and environments answer |
| `rollout_function.py` | a user's own rollout function |
| `program.py` | an agent program as it is, which is given the policy behind OpenAI's chat API |
| `chat_api.py`, `chat_server.py` | that dialect, and the server on this machine's own address |
| `recorded.py`, `attempt.py` | its requests matched to recorded ids; answers that it did not receive |
| `running.py` | the threads and processes of agents |

Everything is loaded on first use: a process that an environment lives in imports `slots.py`, and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.lazy import on_first_use

if TYPE_CHECKING:
    from strop.agents.openenv import OpenEnv as OpenEnv
    from strop.agents.program import AgentProgram as AgentProgram
    from strop.agents.running import Endpoint as Endpoint
    from strop.agents.tools import Rewarded as Rewarded
    from strop.agents.verifiers_tasks import VerifiersTasks as VerifiersTasks

__all__, __getattr__, __dir__ = on_first_use(
    __name__,
    {
        "openenv": ("OpenEnv",),
        "program": ("AgentProgram",),
        "running": ("Endpoint",),
        "tools": ("Rewarded",),
        "verifiers_tasks": ("VerifiersTasks",),
    },
)
