"""A save beside the run: one at a time, whole or absent, and its failure ends the run."""

import threading
from pathlib import Path

import pytest

from zaya_core.errors import RunError
from zaya_core.train.run import Run
from zaya_core.train.saving import Saver


@pytest.fixture
def training(tmp_path) -> Run:
    run = Run(tmp_path / "out", {})
    run.start(None)
    return run


def test_a_step_does_not_wait_for_the_disk_and_a_second_save_waits_for_the_first(training):
    gate, order = threading.Event(), []

    def slow(directory: Path) -> None:
        gate.wait(10)
        order.append(directory.name)

    with Saver(training, keep=2) as saver:
        saver.save(1, slow)
        saver.check()
        assert training.latest() is None, "still being written"
        threading.Timer(0.05, gate.set).start()
        saver.save(2, lambda directory: order.append(directory.name))
        assert training.latest().name == "step-1"
        saver.wait()
    assert order == ["step-1.partial", "step-2.partial"]
    assert training.latest().name == "step-2"


def test_a_save_that_failed_is_raised_once_and_leaves_nothing(training):
    def full(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with Saver(training, keep=2) as saver:
        saver.save(1, full)
        with pytest.raises(RunError, match="step-1 failed: No space left on device"):
            saver.wait()
        saver.check()
    assert not list((training.out / "checkpoints").glob("step-*"))


def test_a_run_that_ends_in_an_error_lets_its_save_end(training):
    gate = threading.Event()

    def broken() -> None:
        with Saver(training, keep=2) as saver:
            saver.save(1, lambda directory: gate.wait(10))
            threading.Timer(0.05, gate.set).start()
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        broken()
    assert training.latest().name == "step-1"


def test_a_line_that_is_being_written_is_not_read(training):
    training.log({"step": 1})
    with open(training.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert training.last_figures() == {"step": 1}
