"""Runs a training script, kills it at random moments, resumes it; for test_resume.py.

python killing.py REFERENCES KILLS SEED SCRIPT OPTION...

Each run is a process of its own, forked from this one, so that PyTorch is imported only once. It is
killed with SIGKILL once it has written some more checkpoints and some more time has passed, so
anywhere: in a step, while a checkpoint is being written, or between epochs.
"""

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path


def start(script: str, options: list[str]) -> int:
    """Runs the script in a new process and returns the process's number."""
    pid = os.fork()
    if pid:
        return pid
    sys.argv = [f"{script}.py", *options]
    try:
        importlib.import_module(script).main(options)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


def ended(pid: int) -> bool:
    """Returns whether a process has ended by itself; if so, it must have done well."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done and status:
        sys.exit(f"the run failed: {os.waitstatus_to_exitcode(status)}")
    return bool(done)


def kill_later(pid: int, checkpoint: Path, rng: random.Random) -> bool:
    """Kills the process after 0 to 2 checkpoints and some milliseconds; False if it ended first."""
    wanted, last, pause = rng.randint(0, 2), _inode(checkpoint), rng.uniform(0, 0.1)
    while wanted:
        if ended(pid):
            return False
        if _inode(checkpoint) != last:
            wanted, last = wanted - 1, _inode(checkpoint)
        time.sleep(0.001)
    time.sleep(pause)
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def main() -> None:
    """Does what the command line says; prints how often it killed the run."""
    references, kills, seed, script, *options = sys.argv[1:]
    sys.path.insert(0, references)
    importlib.import_module(script)
    rng = random.Random(int(seed))
    output = Path(options[options.index("--output-dir") + 1])
    killed = 0
    while killed < int(kills):
        if not kill_later(start(script, options), output / "checkpoint.pth", rng):
            break
        killed += 1
    else:
        pid = start(script, options)
        while not ended(pid):
            time.sleep(0.01)
    print(f"killed {killed} times")


if __name__ == "__main__":
    main()
