"""A stand-in for the package that ZeroGPU Spaces bring, as far as a page can tell the difference.

As the real one: it must be imported before gradio and torch; whoever is loaded when the page is
launched is what the workers have; a task runs in a process forked off this one, which gets its
arguments and sends its results pickled, without waiting for who reads them; of an error only its
kind comes back; closing the generator asks the worker to stop at its next result. Written from
that behaviour; no GPU, no schedule.
"""

from __future__ import annotations

import inspect
import io
import json
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

for late in ("gradio", "torch"):
    if late in sys.modules:
        raise RuntimeError(f"import spaces before {late}")

import gradio as gr  # noqa: E402

forked = False
_context = multiprocessing.get_context("fork")
_launch = gr.Blocks.launch


def note(**told: Any) -> None:
    """One line of what happened, for the test that looks on."""
    with Path(os.environ["ZERO_LOG"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"pid": os.getpid(), **told}) + "\n")


def _first_launch(*args: Any, **named: Any) -> Any:
    gr.Blocks.launch = _launch  # type: ignore[method-assign]
    from space_core import contest

    note(event="launch", loaded=len(contest._LOADED))
    return _launch(*args, **named)


gr.Blocks.launch = _first_launch  # type: ignore[method-assign]


class _Plain(pickle.Pickler):
    """A tensor would need the GPU on the side that has none."""

    def reducer_override(self, value: Any) -> Any:
        if type(value).__module__.split(".")[0] in ("torch", "gradio", "transformers", "tokenizers"):
            raise pickle.PicklingError(f"{type(value)} crosses the border")
        return NotImplemented


def packed(value: Any) -> bytes:
    out = io.BytesIO()
    _Plain(out).dump(value)
    return out.getvalue()


def GPU(task: Any = None, *, duration: Any = None, size: str | None = None) -> Any:
    if not callable(task):
        return lambda real: _wrapped(real, duration)
    return _wrapped(task, duration)


def _wrapped(task: Callable[..., Any], duration: Any) -> Callable[..., Any]:
    streams = inspect.isgeneratorfunction(task)

    def results(args: Any, named: Any) -> Iterator[Any]:
        asked = packed((args, named))
        seconds = duration(*args, **named) if callable(duration) else duration
        note(event="schedule", task=task.__name__, seconds=seconds)
        reader, writer = _context.Pipe(duplex=False)
        stop = _context.Event()
        process = _context.Process(target=_work, args=(task, streams, asked, writer, stop), daemon=True)
        process.start()
        writer.close()
        arrived: list[Any] = []
        changed = threading.Condition()

        def fill() -> None:
            kind = ""
            while kind != "end":
                try:
                    kind, value = pickle.loads(reader.recv_bytes())
                except EOFError:
                    kind, value = "end", "GPU task aborted"
                with changed:
                    arrived.append((kind, value))
                    changed.notify()

        threading.Thread(target=fill, daemon=True).start()
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: arrived)
                    kind, value = arrived.pop(0)
                if kind == "end":
                    if value:
                        raise gr.Error(value, print_exception=False)
                    return
                yield value
        except GeneratorExit:
            stop.set()
            raise
        finally:
            process.join(30)
            note(event="release", alive=process.is_alive())

    if streams:

        @wraps(task)
        def streamed(*args: Any, **named: Any) -> Iterator[Any]:
            yield from (task(*args, **named) if forked else results(args, named))

        return streamed

    @wraps(task)
    def answered(*args: Any, **named: Any) -> Any:
        return task(*args, **named) if forked else next(iter(results(args, named)))

    return answered


def _work(task: Callable[..., Any], streams: bool, asked: bytes, writer: Any, stop: Any) -> None:
    global forked
    forked = True
    error, sent = "", 0
    try:
        args, named = pickle.loads(asked)
        told = task(*args, **named) if streams else iter([task(*args, **named)])
        for value in told:
            if stop.is_set():
                if streams:
                    told.close()
                break
            writer.send_bytes(packed(("ok", value)))
            sent += 1
    except Exception as caught:
        error = type(caught).__name__
        note(event="error", words=str(caught))
    note(event="worked", task=task.__name__, results=sent)
    writer.send_bytes(packed(("end", error)))
    writer.close()
    os._exit(0)
