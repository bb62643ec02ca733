"""Files of settings from others: refused in one line that names the file, within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.trust.bounds import bounded
from tripq.tasks.lesions.config import LesionConfig
from tripq.training.config import MAX_CONFIG_BYTES, ConfigError, example_config, read_config

LONG_KEY = "a." * (MAX_CONFIG_BYTES // 2 - 4) + "b = 1\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x = " + "{a = " * 2000 + "1" + "}" * 2000, "nested too deeply"),
        ("a." * 2000 + "b = 1", "nested too deeply"),
        (f"[training]\nsteps = {'9' * 5000}", "a whole number has more than 64 bits"),
        (f"[training]\nsteps = 0x{'f' * 5000}", "a whole number has more than 64 bits"),
        (f"[training]\nsteps = {'9' * 4000}", "a whole number has more than 64 bits"),
        (f"[training]\nsteps = {2**63}", "a whole number has more than 64 bits"),
        ("[training]\nlearning_rate = nan", r"\[training\] learning_rate: "),
        ("[training]\nlearning_rate = inf", r"\[training\] learning_rate: "),
        (f'[network]\ngroup = "{"x" * 9000}"', r"\[network\] group: "),
        (f"{'x' * 9000} = 1", "no such key; known keys: "),
        ("#" * (MAX_CONFIG_BYTES + 1), "too large: more than 16,384 bytes"),
    ],
    ids=lambda text: f"{text[:20]}",
)
def test_refused_with_the_name_of_the_file(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(text)
    with bounded(10, 100), pytest.raises(ConfigError, match=rf"train\.toml: .*{reason}") as refused:
        read_config(path, LesionConfig)
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


def test_the_longest_key_takes_little(tmp_path: Path) -> None:
    """Memory for a dotted key grows with the square of its length."""
    path = tmp_path / "train.toml"
    path.write_text(LONG_KEY)
    with bounded(30, 400), pytest.raises(ConfigError, match=r"train\.toml: .*nested too deeply"):
        read_config(path, LesionConfig)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for name in ("pipe", "zero", "folder"):
        path = tmp_path / f"{name}.toml"
        with bounded(5, 10), pytest.raises(ConfigError, match=rf"{name}\.toml: a .*, not a file"):
            read_config(path, LesionConfig)


def test_settings_of_usual_size_are_far_from_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(example_config(LesionConfig))
    assert path.stat().st_size < MAX_CONFIG_BYTES / 3
    assert read_config(path, LesionConfig) == LesionConfig()
