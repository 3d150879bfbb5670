"""Steps that were skipped because the loss or a gradient was not finite: counted and named."""

import json
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
    """Counts skipped steps, and writes each to `skipped.jsonl` with the names of its pictures."""

    def __init__(
        self, workdir: Path, *, step: int, most: int, names_of: Callable[[int], Sequence[str]]
    ):
        """Starts with none; what the file has of later steps is dropped, they are done again.

        Args:
          workdir: Of the run.
          step: After which it goes on.
          most: In a row, from which on `check` raises; 0: any number passes.
          names_of: Step number to the names of the pictures in its batch.
        """
        self._path = workdir / "skipped.jsonl"
        self._most, self._names_of = most, names_of
        self.in_a_row = 0
        self.step = step  # the last that was checked
        if distributed.is_primary() and self._path.exists():
            rows = [row for row in logs.read(self._path) if row["step"] <= step]
            files.write(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of a step.

        Args:
          step: Its number, from 1.
          metrics: Of `step.make_train_step`, as plain numbers.

        Raises:
          SkippedError: If it is the last one allowed.
        """
        self.step = step
        if not metrics["skipped"]:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if distributed.is_primary():
            names = list(self._names_of(step))
            row = {"step": step, "loss": str(metrics["loss"]), "pictures": names}
            with files.appending(self._path) as file:
                file.write(json.dumps(row) + "\n")
            logging.warning(
                "step %d is skipped: its loss, a gradient or a box is not finite; its pictures: %s",
                step,
                ", ".join(names),
            )
        if self._most and self.in_a_row >= self._most:
            raise SkippedError


def keep_for_post_mortem(
    workdir: Path, state: step_lib.TrainState, guard: Guard
) -> errors.UserError:
    """Saves the state apart, and gives the error to raise.

    Args:
      workdir: Of the run.
      state: After the last step that was started; skipped ones have not changed it.
      guard: Which has raised.
    """
    folder = files.make_folder(workdir / FOLDER).absolute()
    if (place := folder / f"step_{int(state.step)}").is_symlink():
        place.unlink()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, _plain(state), force=True)
    return errors.UserError(
        f"the loss or a gradient was not finite in {guard.in_a_row} steps in a row, to step "
        f"{guard.step}: lower config.train.learning_rate, or set config.train.warmup_steps or "
        f"clip_norm, and give --change-config to go on from the last checkpoint; the state lies in "
        f"{folder}, the names of the pictures in skipped.jsonl"
    )


def _plain(state: step_lib.TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}
