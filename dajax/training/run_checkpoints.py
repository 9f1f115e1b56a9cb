"""Training states on disk, written by orbax: each is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from dajax.errors import ConfigError, JobError, missing_extra
from dajax.training.step import TrainState


def import_orbax() -> Any:
    """Return `orbax.checkpoint`.

    Raises:
        ConfigError: orbax is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ConfigError(missing_extra("train", "training needs orbax")) from error
    return ocp


class RunCheckpoints:
    """A directory with the training states of a run, each in a folder named by its step.

    A state is written under a temporary name and renamed when it is whole. If the writing is interrupted or the disk is
    full, the earlier states stay as they were.

    Args:
        directory: the directory; it is made if it does not exist.
        keep: how many of the newest states stay.

    Raises:
        ConfigError: orbax is not installed.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        ocp = self._ocp = import_orbax()
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int | None:
        """Return the newest step whose state is on disk, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Save a state.

        Args:
            state: the training state; its `step` names the folder.
            data: what the data need in order to continue; JSON.

        Raises:
            JobError: the state cannot be written. Earlier states stay as they were.
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
        except Exception as error:  # orbax and tensorstore raise errors of many types; after each, nothing was saved
            raise JobError(
                f"step {int(state.step)} could not be saved in {self.directory} ({_first_line(error)}); "
                f"the newest state there is {self.latest()}"
            ) from error

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Return a saved state, and what was saved for the data.

        Args:
            like: a state of the same structure, shapes and placement.
            step: the step of the state; None: the newest.

        Raises:
            JobError: there is no such state, it is damaged, or it is of another model or optimizer.
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
                f"step {step} in {self.directory} cannot be restored: it is damaged ({_first_line(error)}). Earlier "
                "states may be whole: remove this step's folder to continue from one of them"
            ) from error
        if saved != _leaves(like):
            raise JobError(
                f"step {step} in {self.directory} is a state of another model or optimizer: continue with the settings "
                "that it was made with, or choose another output folder"
            )
        return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(found["state"])), found["data"]

    def close(self) -> None:
        """Close orbax' manager."""
        self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    # The leaves are numbered, so that the stored names do not depend on how optax names its states.
    return {f"{i:05}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _leaves(state: TrainState) -> dict[str, str]:
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
