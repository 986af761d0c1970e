"""Conversations with tools and environments: what the model says, what answers it, and the ids of both.

| file | what it is for |
|---|---|
| `call_formats.py` | how models write calls of tools, and which way a template writes them |
| `spoken.py` | one turn of the model: thoughts, words, calls |
| `template.py` | a chat template at the turns of a conversation |
| `conversation.py` | one trajectory, as messages and as ids |
| `tools.py` | functions as tools |
| `environments.py`, `slots.py` | environments, and the threads or processes that they live in |
| `turns.py` | the loop: the model writes, tools and environments answer |
"""

from strop.agents.tools import Rewarded

__all__ = ["Rewarded"]
