"""Training states on disk, by orbax: whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from dajax.errors import ConfigError, JobError
from dajax.training.step import TrainState


class RunCheckpoints:
    """A directory of training states, one for each step that was saved.

    A state is written beside its place and then renamed: one that was interrupted, or that found the disk full, leaves
    the earlier ones as they were.

    Args:
        directory: made if it is not there.
        keep: how many of the newest stay.

    Raises:
        ConfigError: orbax is not installed.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ConfigError("training needs orbax: pip install orbax-checkpoint") from error
        self._ocp = ocp
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Return the newest step that was saved whole."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Save a state, with what the data needs to go on.

        Raises:
            JobError: it could not be written. Earlier states are as they were.
        """
        args = self._ocp.args
        try:
            self._manager.save(
                int(state.step),
                args=args.Composite(
                    state=args.StandardSave(_tree(state)),
                    data=args.JsonSave(data),
                    leaves=args.JsonSave(_leaves(state)),
                ),
            )
            self._manager.wait_until_finished()
        except Exception as error:  # orbax and tensorstore have errors of many types; all mean that nothing was saved
            raise JobError(
                f"step {int(state.step)} could not be saved in {self.directory} ({_first_line(error)}); "
                f"the newest state there is {self.latest()}"
            ) from error

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Return the state of a step, the newest if None, and what was saved for the data.

        Args:
            like: a state of the same structure, shapes and placement.
            step: which one.

        Raises:
            JobError: there is none, or it is of another model or optimizer.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise JobError(f"{self.directory} has no saved state")
        args = self._ocp.args
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, _tree(like))
        try:
            saved = self._manager.restore(step, args=args.Composite(leaves=args.JsonRestore()))["leaves"]
            if saved == _leaves(like):
                found = self._manager.restore(
                    step, args=args.Composite(state=args.StandardRestore(shapes), data=args.JsonRestore())
                )
        except Exception as error:  # see `save`
            raise JobError(
                f"step {step} in {self.directory} cannot be restored, it is damaged ({_first_line(error)}). Earlier "
                "steps may be whole: remove its folder to go on from one"
            ) from error
        if saved != _leaves(like):
            raise JobError(
                f"step {step} in {self.directory} is a state of another model or optimizer: go on with the settings "
                "that it was made with, or choose another folder"
            )
        return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(found["state"])), found["data"]

    def close(self) -> None:
        """Free what orbax holds."""
        self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    # Numbered leaves: names of optax' states are no part of what is stored.
    return {f"{i:05}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _leaves(state: TrainState) -> dict[str, str]:
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
