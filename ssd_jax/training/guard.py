"""Steps that were skipped because the loss or a gradient was not finite: counted and named."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from ssd_jax import distributed, errors, files
from ssd_jax.training import logs
from ssd_jax.training import step as step_lib

FOLDER = "post_mortem"


class SkippedError(Exception):
    """As many steps in a row as the config allows were skipped."""


class Guard:
    """Counts skipped steps, and writes each to `skipped.jsonl` with the names of its images."""

    def __init__(
        self, workdir: Path, *, step: int, most: int, names_of: Callable[[int], Sequence[str]]
    ):
        """Starts without skipped steps; records of later steps are dropped, as they are repeated.

        Args:
          workdir: Workdir of the run.
          step: Step that the run resumes after.
          most: In a row, from which on `check` raises; 0: any number passes.
          names_of: Step number to the names of the images in its batch.
        """
        path = workdir / "skipped.jsonl"
        self._most, self._names_of = most, names_of
        self.in_a_row = 0
        self.step = step  # the last that was checked
        self._file, self._rows = logs.Lines(path, logs.as_json), logs.records(path)
        if distributed.is_primary() and path.exists():
            self._rows = [row for row in self._rows if row["step"] <= step]
            self._file.write_all(self._rows)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of a step.

        Args:
          step: Its number, from 1.
          metrics: Metrics of a training step as Python numbers.

        Raises:
          SkippedError: If it is the last one allowed.
        """
        self.step = step
        if not metrics["skipped"]:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if distributed.is_primary():
            names: list[str] = []
            with logs.best_effort(f"what the images of step {step} are called"):
                names += self._names_of(step)
            self._rows.append({"step": step, "loss": str(metrics["loss"]), "images": names})
            self._file.append(self._rows)
            logging.warning(
                "step %d is skipped: its loss, a gradient or a box is not finite; its images: %s",
                step,
                ", ".join(names),
            )
        if self._most and self.in_a_row >= self._most:
            raise SkippedError


def keep_for_post_mortem(
    workdir: Path, state: step_lib.TrainState, guard: Guard
) -> errors.UserError:
    """Saves the state separately and returns the error to raise.

    Args:
      workdir: Workdir of the run.
      state: After the last step that was started; skipped ones have not changed it.
      guard: The guard that raised.
    """
    folder = (workdir / FOLDER).absolute()
    with logs.best_effort(folder), ocp.StandardCheckpointer() as checkpointer:
        files.make_folder(folder)
        if (place := folder / f"step_{int(state.step)}").is_symlink():
            place.unlink()
        checkpointer.save(place, _plain(state), force=True)
    return errors.UserError(
        f"the loss or a gradient was not finite in {guard.in_a_row} steps in a row, to step "
        f"{guard.step}: lower config.train.learning_rate, or set config.train.warmup_steps or "
        f"clip_norm, and give --change-config to resume from the last checkpoint; the state is in "
        f"{folder}, the names of the images in skipped.jsonl"
    )


def _plain(state: step_lib.TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}
