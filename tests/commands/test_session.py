"""Whatever goes wrong is told in one line and has its exit status."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from tests.commands.conftest import Call, write_weights
from tests.commands.test_train import write_labelled
from tripq.commands.session import Session, session
from tripq.scans import DWIError


def end(error: BaseException, capsys: pytest.CaptureFixture[str], **options) -> tuple[int, str]:
    """Exit status and stderr of a command in which an error is raised."""
    settings = {"quiet": False, "verbose": False, "log_file": None, **options}
    with pytest.raises(typer.Exit) as exit_, session(**settings):
        raise error
    return exit_.value.exit_code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DWIError("a.nii: truncated."), 1, "error: a.nii: truncated."),
        (DWIError("two\nlines"), 1, "error: two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 1, "error: out: No space left"),
        (MemoryError("a.nii: out of memory."), 1, "error: a.nii: out of memory. Close other"),
        (RuntimeError("shapes"), 1, "error: RuntimeError: shapes. This is a bug in tripq"),
        (KeyboardInterrupt(), 130, "error: interrupted; no file is half-written."),
    ],
)
def test_an_error_becomes_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = end(error, capsys)
    assert code == status
    assert shown.startswith(line)
    assert shown.count("\n") == 1
    assert end(error, capsys, quiet=True)[1] == shown


def test_the_log_file_has_the_traceback_and_is_appended_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    end(RuntimeError("first"), capsys, log_file=log)
    _, shown = end(RuntimeError("second"), capsys, log_file=log)
    assert "Traceback" not in shown
    text = log.read_text()
    assert text.count("Traceback") == 2
    assert text.index("first") < text.index("second")


def test_a_log_file_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit), session(quiet=False, verbose=False, log_file=tmp_path):
        pass
    assert f"error: {tmp_path}: Is a directory" in capsys.readouterr().err


def test_messages_hold_what_stands_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files are no markup."""
    with session(quiet=False, verbose=False, log_file=None) as screen:
        logging.getLogger("tripq").info("[red]sub[/red]")
        with screen.bar("[name]", "voxels") as report:
            report(1, 2)
    assert capsys.readouterr().err == "[red]sub[/red]\n"


def test_quiet_hides_messages_but_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with session(quiet=True, verbose=False, log_file=None):
        logging.getLogger("tripq").info("scan read")
        logging.getLogger("tripq").warning("the frame is doubtful")
    assert capsys.readouterr().err == "caution: the frame is doubtful\n"


def test_a_session_leaves_no_handler_behind() -> None:
    before = list(logging.getLogger("tripq").handlers)
    with session(quiet=True, verbose=False, log_file=None):
        assert len(logging.getLogger("tripq").handlers) == len(before) + 1
    assert logging.getLogger("tripq").handlers == before


def test_a_full_log_file_is_told_once_and_the_work_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with session(quiet=False, verbose=False, log_file=Path("/dev/full")) as screen:
        logging.getLogger("tripq").info("working")
        screen.show("done")
    out, err = capsys.readouterr()
    assert out == "done\n"
    assert err.splitlines() == [
        "caution: /dev/full: cannot be written: [Errno 28] No space left on device",
        "working",
    ]


HOSTILE = "sub-\x1b[2J\nerror: all is lost\r\udcff"


def test_words_of_others_stay_on_one_line_and_steer_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    with session(quiet=False, verbose=False, log_file=log) as screen:
        logging.getLogger("tripq").info("%s", HOSTILE)
        screen.show(HOSTILE)
    shown = "sub-\\x1b[2J\\nerror: all is lost\\r\\udcff"
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")
    assert log.read_text(encoding="utf-8").splitlines()[-1].endswith(f"INFO {shown}")
    code, err = end(ValueError(HOSTILE), capsys, log_file=log)
    assert (code, err.count("\n")) == (1, 1)
    assert "\x1b" not in err + log.read_text(encoding="utf-8")


def test_a_bar_takes_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a terminal: elsewhere there are no bars."""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with session(quiet=False, verbose=False, log_file=None) as screen:
        for name in ("[/red]", "[red]x", HOSTILE):
            with screen.bar(f"reading {name}", "voxels") as report:
                report(1, 2)
                screen.progress.refresh()


class Swallow:
    """A signal that comes during a destructor: Python ignores what is raised there."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("where", ["the next report", "the next bar", "the end"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cannot_be_swallowed(
    number: signal.Signals, status: int, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = []

    def command() -> None:
        with session(quiet=False, verbose=False, log_file=None) as screen:
            with screen.bar("first") as report:
                Swallow(number)
                reached.append("the next report")
                if where == "the next report":
                    report(1, 2)
            reached.append("the next bar")
            if where == "the next bar":
                with screen.bar("second"):
                    pass
            reached.append("the end")

    with pytest.raises((typer.Exit, SystemExit)) as end_:
        command()
    assert reached[-1] == where
    assert status == (end_.value.exit_code if number == signal.SIGINT else end_.value.code)
    said = "error: interrupted; no file is half-written.\n" if status == 130 else ""
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("command", ["segment", "segment-bids", "train", "evaluate", "info"])
def test_a_swallowed_interrupt_ends_every_command(
    command: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_weights(tmp_path / "tiny.safetensors")
    for subject in ("sub-01", "sub-02"):
        write_labelled(tmp_path / "data", subject)
    data, out = tmp_path / "data", tmp_path / "out"
    scan = data / "sub-01/dwi/sub-01_dwi.nii.gz"
    mask = data / "derivatives/truth/sub-01/dwi/sub-01_desc-brain_mask.nii.gz"
    (maps := tmp_path / "maps/sub-01/dwi").mkdir(parents=True)
    (maps / "sub-01_space-orig_label-lesion_probseg.nii.gz").touch()
    words = {
        "segment": (scan, "--mask", mask, "--weights", weights, "-o", out),
        "segment-bids": (data, out, "participant", "--weights", weights),
        "train": (data, "-o", out, "--log", tmp_path / "log.txt"),
        "evaluate": (tmp_path / "maps", data / "derivatives/truth", "-o", out),
        "info": (scan,),
    }
    meter, bars = Session.meter, []

    @contextmanager
    def met(screen: Session, name: str) -> Iterator[Callable[[float, str], None]]:
        with meter(screen, name) as update:
            bars.append(name)
            Swallow(signal.SIGINT)
            yield update

    monkeypatch.setattr(Session, "meter", met)
    done = call(command, *words[command])
    assert (done.status, len(bars)) == (130, 1)
    assert done.error == "error: interrupted; no file is half-written."
    assert "ignored" not in done.stderr
    about = {"dataset_description.json", ".bidsignore"}
    assert not [path for path in out.rglob("*") if path.name not in about]


def test_a_session_leaves_signals_as_they_were() -> None:
    def own(*_: object) -> None:
        """A handler of somebody else, who calls the command."""

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    try:
        for handler in (own, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            with session(quiet=True, verbose=False, log_file=None):
                assert signal.getsignal(signal.SIGINT) is handler
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
    with session(quiet=True, verbose=False, log_file=None):
        assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
        assert sys.unraisablehook is not hook
    assert {n: signal.getsignal(n) for n in before} == before
    assert sys.unraisablehook is hook
