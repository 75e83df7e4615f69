"""The entry scripts as commands in processes of their own, which need not import torch and the rest first.

Some hundred commands are run by the suite, and their imports took longer than what they do. A server (the standard
library's) imports once what the scripts do; each command runs in a fork of it, as ``__main__``, with its arguments,
folder, environment and output as a shell would give them. Where the imports themselves matter, tests start a Python.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "lightning_modules.joint",
        "merging.advisor",
        "merging.exporting",
        "merging.predicting",
        "merging.run",
        "reporting.making",
        "datamodules.preparing",
    ]
)


class Command:
    """``python script arguments...``, begun in ``folder``; what it writes can be read once it has ended."""

    def __init__(self, script: str, arguments: list[str], folder: Path = ROOT) -> None:
        self.line = [str(ROOT / script), *arguments]
        self._written = tempfile.TemporaryDirectory(prefix="command")
        self._process = _FORKS.Process(target=_run, args=(self.line, folder, dict(os.environ), self._written.name))
        self._process.start()

    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL, as the system does when memory runs out."""
        self._process.kill()

    def end(self, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Waits for its end and gives its exit code and what it wrote."""
        self._process.join(timeout)
        late = self.running()
        self.kill()
        self._process.join()
        out, err = (Path(self._written.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        self._written.cleanup()
        if late:
            raise subprocess.TimeoutExpired(self.line, timeout, out, err)
        code = self._process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(self.line, code, out, err)


def run_command(
    script: str, arguments: list[str], folder: Path = ROOT, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """``python script arguments...`` in ``folder``, to its end."""
    return Command(script, arguments, folder).end(timeout)


def _run(line: list[str], folder: Path, environment: dict[str, str], written: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(written, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = line
    sys.path.insert(0, str(ROOT))
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
