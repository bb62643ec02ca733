"""Messages and progress bars of a command, and its exit after an error or a signal."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tripq.infra.files import printable
from tripq.infra.rank import Rank


def _on_one_line(record: logging.LogRecord) -> bool:
    """Make a message printable: text from a file must not look like another message."""
    record.msg, record.args = printable(record.getMessage()), ()
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
        record.exc_text = "\n".join(map(printable, trace.splitlines()))
    return True


log = logging.getLogger("tripq")
"""Logger of all commands."""
log.addFilter(_on_one_line)

FAILED, INTERRUPTED = 1, 130
"""Exit statuses; Typer exits with 2 after invalid usage."""

_PREFIXES = {logging.WARNING: "caution: ", logging.ERROR: "error: "}


@dataclass
class Stop:
    """Record of a signal that ends the command.

    Python raises the exception of a signal wherever the program is at that moment.  Destructors and
    callbacks, such as those of the import machinery, cannot propagate it, and some libraries catch
    every exception.  It is therefore stored here, and `heed` raises it again.

    Attributes
    ----------
    asked : BaseException or None
        The exception of the signal: ``KeyboardInterrupt``, or ``SystemExit`` for SIGTERM.
    """

    asked: BaseException | None = None

    def heed(self) -> None:
        """Raise the exception of a received signal, if any."""
        if self.asked is not None:
            raise self.asked

    def _ask(self, number: int, _: object) -> NoReturn:
        self.asked = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        raise self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM in the main thread, unless another handler is set.

        Python prints no message if an exception of these signals could not be propagated.
        """
        usual: dict[signal.Signals, Any] = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
        }
        if threading.current_thread() is not threading.main_thread():
            usual = {}
        mine = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
        tell = sys.unraisablehook

        def tell_others(found: Any) -> None:
            if self.asked is None or found.exc_value is not self.asked:
                tell(found)

        sys.unraisablehook = tell_others
        for number in mine:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number in mine:
                signal.signal(number, usual[number])
            sys.unraisablehook = tell


@dataclass(frozen=True)
class Session:
    """The screen during a command.

    Parameters
    ----------
    progress : Progress
        Bars on stderr.
    stop : Stop
        Received signal, checked by every bar.
    results : Console
        Results, on stdout.
    """

    progress: Progress
    stop: Stop
    results: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))

    @contextmanager
    def bar(self, name: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        """Show a bar; the yielded function takes the number of finished items and the total.

        Until its first call the bar is indeterminate.
        """
        with self.meter(name) as update:
            yield lambda done, total: update(done / total, f"{done:,} of {total:,} {unit}")

    @contextmanager
    def meter(self, name: str) -> Iterator[Callable[[float, str], None]]:
        """Show a bar; the yielded function takes the finished fraction and a detail text."""
        self.stop.heed()
        task = self.progress.add_task(printable(name), total=None, detail="")

        def update(share: float, detail: str) -> None:
            self.stop.heed()
            self.progress.update(task, completed=share, total=1.0, detail=detail)

        try:
            yield update
        finally:
            self.progress.remove_task(task)

    def show(self, *lines: str | Table) -> None:
        """Print results, each text on one line, after removing the bars."""
        if self.progress.live.is_started:
            self.progress.stop()
        for line in lines:
            self.results.print(printable(line) if isinstance(line, str) else line, markup=False)


@contextmanager
def session(*, quiet: bool, verbose: bool, log_file: Path | None) -> Iterator[Session]:
    """Run a command with messages and bars, and report an error in one line.

    Parameters
    ----------
    quiet, verbose : bool
        Show warnings and errors only, or details as well.
    log_file : Path or None
        File to which all messages are appended, including tracebacks, from all processes of the
        command.

    Raises
    ------
    typer.Exit
        With status 1 in place of an error, and 130 in place of a ``KeyboardInterrupt``.
    SystemExit
        With status 143 after SIGTERM, as sent by cluster schedulers; no file is half-written.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    rank = Rank.here()
    # Rank 0 reports progress; the other ranks report warnings and errors only.
    usual = logging.INFO if rank.leads else logging.WARNING
    level = logging.WARNING if quiet else logging.DEBUG if verbose else usual
    who = "" if rank.count == 1 else f"process {rank.number + 1} of {rank.count}: "
    handlers: list[logging.Handler] = [_ConsoleHandler(console, level, who)]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    progress = Progress(*columns, console=console, transient=True)
    shown = progress if console.is_terminal and not quiet and rank.leads else nullcontext()
    # Warnings of libraries go to the log file, not to the screen.
    logging.captureWarnings(True)
    warnings = logging.getLogger("py.warnings")
    warnings.propagate = False
    warnings.addFilter(_on_one_line)
    warnings.addHandler(logging.NullHandler())
    of_headers = logging.getLogger("nibabel.global")  # its errors contain the same text
    of_headers.disabled = True
    log.setLevel(logging.DEBUG)
    try:
        if log_file is not None:
            handlers.append(_log_file(log_file, who))
            warnings.addHandler(handlers[-1])
        for handler in handlers:
            log.addHandler(handler)
        log.debug("command: %s", " ".join(sys.argv))
        stop = Stop()
        with shown, stop.listening():
            yield Session(progress, stop)
            stop.heed()
    except KeyboardInterrupt:
        log.error("interrupted; no file is half-written.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, typer.Exit | typer.BadParameter):
            raise
        if not log.handlers:  # the log file could not be opened
            log.addHandler(handlers[0])
        log.error(explain(error))
        log.debug("traceback:", exc_info=True)
        raise typer.Exit(FAILED) from None
    finally:
        logging.captureWarnings(False)
        of_headers.disabled = False
        for handler in handlers:
            log.removeHandler(handler)
            warnings.removeHandler(handler)
            handler.close()


def explain(error: Exception) -> str:
    """Describe an error in one line.

    >>> explain(FileNotFoundError(2, "No such file or directory", "scan.nii.gz"))
    'scan.nii.gz: No such file or directory'
    >>> explain(KeyError("b0"))
    "KeyError: 'b0'. This is a bug in tripq: please report it, with the file of --log."
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        reason = error.strerror or text
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, MemoryError):
        return f"{text or 'out of memory.'} Close other programs or use a larger machine."
    if isinstance(error, ValueError | FloatingPointError):
        return text
    return (
        f"{type(error).__name__}: {text}. This is a bug in tripq: please report it, with the "
        "file of --log."
    )


def need(*modules: str) -> None:
    """Check that packages of the extras ``ms`` and ``scores`` are installed.

    Raises
    ------
    ValueError
        If one is missing; the message gives the command that installs it.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        extras = ",".join(sorted({"scores" if name == "panoptica" else "ms" for name in missing}))
        raise ValueError(f"{', '.join(missing)} not installed: pip install 'tripq[{extras}]'.")


class _ConsoleHandler(logging.Handler):
    """Lines on the screen, above the bars; without markup, as file names may contain brackets."""

    def __init__(self, console: Console, level: int, who: str) -> None:
        super().__init__(level)
        self._console = console
        self._who = who

    def emit(self, record: logging.LogRecord) -> None:
        text = _PREFIXES.get(record.levelno, "") + self._who + self.format(record)
        self._console.print(text, markup=False)


class _FileHandler(logging.FileHandler):
    """Appends to a file; a full disk causes one warning, and the command continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        self.setLevel(logging.CRITICAL + 1)
        log.warning("%s: cannot be written: %s", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):  # text that could not be written before still cannot
            super().close()


def _log_file(path: Path, who: str) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s"))
    return handler
