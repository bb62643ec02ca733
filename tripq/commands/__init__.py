"""The command ``tripq``.

Each command is one module; the library does the computation.  The library is imported inside the
commands, after the checks of `tripq.commands.checks`, because importing torch takes seconds and
``--help``, shell completion and errors in the arguments must be fast.
"""

from __future__ import annotations

import os

import typer

from tripq.commands import options
from tripq.commands.check import check
from tripq.commands.evaluate import evaluate
from tripq.commands.info import info
from tripq.commands.options import BIDSCommand, Command
from tripq.commands.predict import predict
from tripq.commands.segment import segment
from tripq.commands.segment_bids import segment_bids
from tripq.commands.simulate import simulate
from tripq.commands.train import train

app = typer.Typer(
    name="tripq",
    help="Rotation-equivariant networks for diffusion MRI.\n\n"
    "For research only: tripq is not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(segment)
app.command(cls=BIDSCommand)(segment_bids)
app.command(cls=Command)(train)
app.command(cls=Command)(predict)
app.command(cls=BIDSCommand)(evaluate)
app.command(cls=Command)(simulate)
app.command(cls=Command)(info)
app.command(cls=Command)(check)


@app.callback()
def main(version: options.Version = False) -> None:
    """Handle the options before the name of a command."""


def run() -> None:
    """Entry point of the command."""
    # Threads that wait actively are many times slower while another program runs.  The variable is
    # read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="tripq")
