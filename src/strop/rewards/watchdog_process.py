"""The watchdog's own process: reads what reward runs since when, and says so when the training process cannot.

Started by `watchdog.py` as a bare interpreter on this file, so it imports the standard library only. Standard input
carries one JSON line when a call begins and one when it ends. Two things make it speak, to standard error and to
`alarms.jsonl` of the run:

* a call is past its limit and its grace: the training process is held where its own timer cannot reach, so it is
  ended (SIGKILL);
* the training process is gone in the middle of a call: `os._exit`, or a crash in native code.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

POLL_SECONDS = 0.5
ALARM = "reward_ended_the_run"
ADVICE = "With reward_isolation=True rewards run in processes of their own: it then costs a completion and not the run."


def main(parent_pid: int) -> None:
    """Watch until the other side says that it leaves, or is gone."""
    calls: dict[int, dict] = {}
    rest = b""
    while True:
        waiting = POLL_SECONDS if calls else 10 * POLL_SECONDS
        readable = select.select([0], [], [], waiting)[0]
        data = os.read(0, 1 << 16) if readable else b""
        *lines, rest = (rest + data).split(b"\n")
        for line in map(json.loads, lines):
            if line["what"] == "leave":
                return
            if line["what"] == "end":
                calls.pop(line["id"], None)
            else:
                calls[line["id"]] = {**line, "began": time.monotonic(), "clock": time.strftime("%H:%M:%S")}
        if os.getppid() != parent_pid or (readable and not data):
            for call in calls.values():
                report(call, ended(call))
            return
        late = [c for c in calls.values() if c["limit"] is not None and time.monotonic() - c["began"] > c["limit"]]
        if late and is_stopped(parent_pid):  # by Ctrl-Z or a debugger: it gets its whole time again
            for call in late:
                call["began"] = time.monotonic()
        elif late:
            report(late[0], held(late[0]))
            os.kill(parent_pid, signal.SIGKILL)
            return


def held(call: dict) -> str:
    """What is said of a call that does not come back."""
    return (
        f"RewardError: reward '{call['reward']}' has held the run since {call['clock']} ({call['rows']} completions), "
        f"and its limit of {call['seconds']:g} seconds cannot interrupt it: it is in native code, or not in the main "
        f"thread. The run is ended. {ADVICE}"
    )


def ended(call: dict) -> str:
    """What is said of a call that took the process with it."""
    return (
        f"RewardError: the run's process ended in the middle of reward '{call['reward']}', called at {call['clock']} "
        f"({call['rows']} completions): os._exit, a crash in native code, or killed from outside (memory?)."
        f"{' ' + ADVICE if call['movable'] else ''}"
    )


def report(call: dict, text: str) -> None:
    """Say it where a person sees it, and where the run's report finds it."""
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live view had hidden it
    print(f"{cursor}\n{text}", file=sys.stderr, flush=True)
    if call["directory"]:
        line = json.dumps({"step": call["step"], "alarm": ALARM, "text": text})
        try:
            with open(os.path.join(call["directory"], "alarms.jsonl"), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            print(f"(it could not be written to the run's folder: {error})", file=sys.stderr, flush=True)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a tracer; where /proc is missing, no."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
