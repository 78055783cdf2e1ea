"""What a logger is told when its run goes on, so that rows after the checkpoint are not there twice."""

from __future__ import annotations

import copy
from typing import Any


def going_on(config: Any, clock: int, versions: list[Any]) -> Any:
    """A Trainer's ``logger`` (one, or a list) for a phase that goes on from ``clock``.

    The CSV file cuts off its own rows. TensorBoard hides what its file has from ``purge_step`` on; W&B goes on with the
    run of the same id. ``versions``: each logger's own name of the run, as the checkpoint has it.
    """
    if isinstance(config, list):
        known = [*versions, *[None] * len(config)]
        return [going_on(logger, clock, known[i : i + 1]) for i, logger in enumerate(config)]
    if not isinstance(config, dict) or "class_path" not in config:
        return config
    config, name = copy.deepcopy(config), config["class_path"].rpartition(".")[2]
    extra = config.get("dict_kwargs") or {}
    if name == "TensorBoardLogger":
        config["dict_kwargs"] = {**extra, "purge_step": clock + 1}  # what was logged at the clock itself stays
    if name == "WandbLogger" and versions and versions[0]:
        config["init_args"] = {**(config.get("init_args") or {}), "id": versions[0]}
        config["dict_kwargs"] = {**extra, "resume": "allow"}
    return config
