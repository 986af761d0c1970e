"""Sessions of an OpenEnv server, which runs here, are environments of turns and of tools."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from tests.support.conversations import trained
from tests.support.patience import with_patience

from strop.agents import OpenEnv

core = pytest.importorskip("openenv.core", reason="pip install 'strop[openenv]'")
SESSIONS = 4


class Word(core.Action):
    word: str


class Heard(core.Observation):
    text: str


class Repeats(core.Environment):
    """Rewards each word that has not been said before; two words are an episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.said = []
        return Heard(text=f" task {seed}")

    def step(self, action, timeout_s=None, **kwargs):
        new = action.word not in self.said
        self.said.append(action.word)
        return Heard(text=f"heard {action.word}", reward=float(new) if len(self.said) > 1 else None, done=self.ended)

    @property
    def ended(self):
        return len(self.said) == 2

    @property
    def state(self):
        return core.State(step_count=len(self.said))


@contextlib.contextmanager
def serving(ping_s):
    """The address of a server that asks each client so often whether it is there, and leaves one that is not."""
    import uvicorn
    from openenv.core.env_server import create_fastapi_app

    app = create_fastapi_app(Repeats, Word, Heard, max_concurrent_envs=SESSIONS)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws_ping_interval=ping_s, ws_ping_timeout=2 * ping_s))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def url():
    with serving(20.0) as address:
        yield address


ROWS = [{"prompt": [{"role": "user", "content": "go"}], "seed": 7}] * 2


def test_a_run_is_rewarded_by_the_servers_steps(url, tmp_path):
    say = lambda context, place: "new" if "heard" in context and place % 2 else "old"  # noqa: E731

    def factory():
        client = core.GenericEnvClient(base_url=url)
        return OpenEnv(client, lambda text: {"word": text}, lambda heard: heard["text"], columns=["seed"])

    trainer = trained(tmp_path, say, ROWS, environment_factory=factory)
    logged = trainer.state.log_history[0]
    assert logged["reward"] == 0.5 and logged["rewards/turns/mean"] == 0.5 and logged.get("turns/failed", 0.0) == 0.0
    contexts = [trainer.processing_class.decode(ids) for ids in trainer._generator.seen[1]]
    assert all("go task 7" in text and "heard old" in text for text in contexts)


class Tools:
    """As TRL's scripts write it: a method of their own calls the client."""

    url = ""

    def __init__(self):
        self.client = core.GenericEnvClient(base_url=self.url).sync()

    def reset(self, **row):
        self.reward = 0.0
        self.client.reset()

    def speak(self, word: str) -> str:
        """Say a word.

        Args:
            word: Which.
        """
        result = self.client.step({"word": word})
        self.reward += result.reward or 0.0
        return result.observation["text"]

    def close(self):
        self.client.close()


def test_a_class_of_tools_may_hold_a_client(url, tmp_path):
    call = '<tool_call>\n{"name": "speak", "arguments": {"word": "%s"}}\n</tool_call>'

    def say(context, place):
        turns = context.count("<r>heard")
        return call % ("old" if turns == 0 or place % 2 else "new") if turns < 2 else "done"

    Tools.url = url
    trainer = trained(tmp_path, say, ROWS, environment_factory=Tools)
    assert trainer.state.log_history[0]["reward"] == 0.5


@with_patience(0.4, 4.0)
def test_the_servers_pings_are_answered_while_nobody_asks(seconds):
    with serving(seconds) as url:
        environment = OpenEnv(core.GenericEnvClient(base_url=url), action=lambda text: Word(word=text))
        assert environment.reset(seed=3)["text"] == " task None"
        time.sleep(4 * seconds)
        assert environment.step("a")[0]["text"] == "heard a"
        assert environment.step("a")[1:] == (0.0, True)
        environment.close()
