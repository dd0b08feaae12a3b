"""
Several processes for one function: each takes the next of its arguments when it is done with the one before.

The process that asks works too, so that of N only N - 1 are started, and one that starts late gets fewer arguments
instead of being waited for. They are started with ``python -c`` and not by `multiprocessing`, which would import the
program's ``__main__`` once more, and so half of a program that it does not need; nor are they forked, for a fork of a
process that has threads, as pyarrow's, may hang. Knows nothing of what the function does.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from otel_model_metrics.files import InputError

Progress = Callable[[int, int], None]
Function = Callable[[Any, Progress], Any]

_PROGRESS, _RESULT, _ERROR = range(3)  # what a process says

# The package's own __init__ is passed over: it has monitors and OpenTelemetry, which cost a fifth of the start.
_START = """
import pickle, sys, types
sys.path[:], folder = pickle.load(sys.stdin.buffer)
package = types.ModuleType("otel_model_metrics")
package.__path__ = [folder]
sys.modules[package.__name__] = package
from otel_model_metrics.batch.processes import work
work()
"""


class WorkerError(RuntimeError):
    """A process that worked on a part could not finish it. Nothing is wrong with what users named."""


class Processes:
    """
    Processes that call a function, and this one with them. Closed, they are gone, whatever they were doing.

    Args:
        modules: What the function and what it calls will import, which takes some 0.4 s.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = tuple(modules)
        self._started: list[_Process] = []
        self._changed = threading.Condition(threading.Lock())
        self._failure: BaseException | None = None
        self._over = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._started:
            process.close()

    def start(self, count: int) -> None:
        """See that so many are started, and do not wait for them."""
        while len(self._started) < count:
            process = _Process()
            self._started.append(process)
            with contextlib.suppress(OSError):  # if it is gone already, that is found when it is asked
                process.tell(pickle.dumps((sys.path, str(Path(__file__).parent.parent))))
                process.tell(pickle.dumps(self._modules))

    def run(
        self,
        function: Function,
        arguments: Sequence[Any],
        done: Callable[[int, Any], None],
        describe: Callable[[Any], str] = str,
        progress: Progress | None = None,
    ) -> None:
        """
        Call a function with each of the arguments. Can be done once.

        Args:
            function: Called with an argument, and with what it may call with bytes and rows read. It, its arguments
                and its results are sent between processes, so they must be known to `pickle`.
            arguments: In the order in which they are begun.
            done: Called with the place of an argument and the result, in any order, one at a time.
            describe: Says in an error message what an argument is.
            progress: Called with bytes and rows read by any of the processes, one at a time.

        Raises:
            InputError: That of the function.
            WorkerError: If it raised something else in another process, or if one is gone; names the argument.
        """
        packed = pickle.dumps(function)
        waiting = iter(enumerate(arguments))
        left = len(arguments)

        def told(size: int, rows: int) -> None:
            if self._failure is not None and not self._over:
                raise self._failure
            if progress is not None:
                with self._changed:
                    progress(size, rows)

        def taken() -> Iterator[tuple[int, Any]]:
            while self._failure is None:
                with self._changed:
                    one = next(waiting, None)
                if one is None:
                    return
                yield one

        def finished(place: int, result: Any) -> None:
            nonlocal left
            with self._changed:
                done(place, result)
                left -= 1
                self._changed.notify_all()

        def served(process: _Process) -> None:
            begun = ""
            try:
                process.tell(packed)
                process.answer(told)
                for place, argument in taken():
                    begun = describe(argument)
                    process.tell(pickle.dumps(argument))
                    finished(place, process.answer(told))
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                when = f"while it read {begun}" if begun else "before it began"
                self._fail(WorkerError(f"A worker process {process.end()} {when}."))
            except _RemoteError as error:
                self._fail(error.seen(begun))
            except BaseException as error:  # of `done` or `progress`
                self._fail(error)

        threads = [threading.Thread(target=served, args=(process,), daemon=True) for process in self._started]
        for thread in threads:
            thread.start()
        try:
            for place, argument in taken():
                try:
                    result = function(argument, told)
                except MemoryError as error:
                    raise WorkerError(f"There is not enough memory for {describe(argument)}.") from error
                finished(place, result)
            with self._changed:
                # Not for the processes: one that is still starting has nothing to do any more.
                while left and self._failure is None:
                    self._changed.wait(1.0)  # without a time limit, Ctrl-C is not noticed on Windows
        except BaseException as error:
            self._fail(error)
        finally:
            self._over = True
            for process in self._started:
                process.kill()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        """The first failure is that of all: the others are ended, and whoever waits for them goes on."""
        with self._changed:
            if self._failure is None and not self._over:
                self._failure = error
                self._changed.notify_all()


class _Process:
    """One of the other processes, as this one sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the process that asks, which then ends the others
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def tell(self, content: bytes) -> None:
        self._in.write(content)
        self._in.flush()

    def answer(self, told: Progress) -> Any:
        """What it has to say, but for its progress, which is told."""
        while True:
            what, *content = pickle.load(self._out)
            if what == _PROGRESS:
                told(*content)
            elif what == _ERROR:
                raise _RemoteError(*content)
            else:
                return content[0]

    def end(self) -> str:
        """How it ended, after it closed its pipe."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if code < 0:
            return f"was killed by signal {-code}" + (", perhaps for want of memory," if code == -9 else "")
        return f"ended with exit code {code}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # something was not yet written, and nobody is there to read it
                pipe.close()


class _RemoteError(Exception):
    """What the function raised in another process."""

    def __init__(self, error: Exception | None, text: str) -> None:
        super().__init__(text)
        self._error = error

    def seen(self, argument: str) -> Exception:
        """The same for users."""
        if isinstance(self._error, InputError):
            return self._error
        if isinstance(self._error, MemoryError):
            failure = WorkerError(f"A worker process has not enough memory for {argument}. Try fewer workers.")
        else:
            failure = WorkerError(f"A worker process failed with {argument}: {self.args[0].splitlines()[-1]}")
        failure.__cause__ = self  # with the lines of the program that led to it
        return failure


def work() -> None:
    """The other end: call the function of standard input with each argument that follows it there."""
    # Whatever prints to standard output would be mistaken for a result.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def say(*content: Any) -> None:
        out.write(pickle.dumps(content))  # as a whole: what cannot be sent is found before the first byte is
        out.flush()

    def told(size: int, rows: int) -> None:
        say(_PROGRESS, size, rows)

    given = sys.stdin.buffer
    try:
        for module in pickle.load(given):
            importlib.import_module(module)
        function = pickle.load(given)
        say(_RESULT, None)
        while True:
            argument = pickle.load(given)
            try:
                say(_RESULT, function(argument, told))
            except BrokenPipeError:
                raise
            except Exception as error:
                say(_ERROR, _sendable(error), traceback.format_exc())
    except (BrokenPipeError, EOFError):
        os._exit(0)  # nobody is there any more, so nothing is worth tidying up


def _sendable(error: Exception) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error
