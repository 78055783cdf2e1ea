"""``o2o validate``, ``o2o test``, ``o2o predict``: a checkpoint's policy in its environment, or on a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from o2o_lightning.cli.show import refuse_existing, say
from o2o_lightning.errors import UserError

HELP = """\
o2o {name} --ckpt_path CKPT [options]

  --ckpt_path CKPT              a checkpoint of any phase, e.g. RUN_DIR/online/checkpoints/best.ckpt
  --model.policy WHICH          actor (default), reference (best policy of the online phase), offline
  --data.env_id ID              another environment of the same sizes
  --data.eval_episodes N        default {episodes}
  --data.eval_seed N            start states, default 1000
  --data.dataset SPEC           for predict: whose observations; the training dataset by default
  --run_dir DIR                 for predict: where actions.npz goes; for test and validate: {name}.json

`test` is the paper's protocol: deterministic actions, fixed start states, mean undiscounted return and D4RL score.
"""
MODEL = "o2o_lightning.phases.evaluate.EvaluatePolicy"
DATA = "o2o_lightning.data.module.OfflineData"


def main(name: str, argv: list[str]) -> int:
    """Runs ``o2o validate | test | predict``."""
    from o2o_lightning.checkpoint.handover import read_handover
    from o2o_lightning.cli.command import split
    from o2o_lightning.cli.compose import compose, lightning_config
    from o2o_lightning.cli.lightning import PhaseCLI
    from o2o_lightning.envs.make import foreign_id

    episodes = 3 if name == "validate" else 10
    if not argv or "-h" in argv or "--help" in argv:
        print(HELP.format(name=name, episodes=episodes), end="")
        return 0
    command = split([token.replace("--ckpt_path", "--model.init_from", 1) for token in argv])  # Lightning's own name
    fits = [option.tokens[0] for option in command.own if option.name == "phase"] + command.overrides
    if fits:
        raise UserError(f"{fits[0]}: `o2o {name}` takes no choices of `o2o fit`. Its options are in `o2o {name} -h`.")
    path = command.values.get("model.init_from")
    if path is None:
        raise UserError(f"o2o {name}: no checkpoint. Pass --ckpt_path RUN_DIR/PHASE/checkpoints/last.ckpt.")
    source = read_handover(path)
    config = lightning_config("offline", compose("offline", command))
    env_id = command.values.get("data.env_id") or foreign_id(source.env_id, f"checkpoint {path}")
    if name != "predict" and env_id is None:
        raise UserError(f"checkpoint {path}: it names no environment to play in. Pass --data.env_id ID.")
    run_dir = Path(command.run_dir or ".")
    target = run_dir / ("actions.npz" if name == "predict" else f"{name}.json")
    if name == "predict" or command.run_dir:
        refuse_existing("--run_dir", target)
    data: dict[str, Any] = {"env_id": env_id, "eval_episodes": episodes, "observation_layout": source.layout}
    data["env_kwargs"] = source.kwargs_in(env_id)
    if name == "predict":
        data["dataset"] = source.manifest.get("source")
    config["model"] = {"class_path": MODEL, "init_args": {"init_from": path}}
    config["data"] = {"class_path": DATA, "init_args": data}
    config["trainer"] |= {"logger": False, "enable_progress_bar": False}
    options = command.without("config").tokens
    built = PhaseCLI(config, options, command.files).build(run_dir, "evaluate")
    if built.trainer.world_size > 1:
        raise UserError(f"--trainer.devices: `o2o {name}` runs on one. Pass --trainer.devices 1.")
    built.trainer.callbacks = []  # type: ignore[attr-defined]
    if name == "predict":
        _predict(built, target)
    else:
        getattr(built.trainer, name)(built.model, datamodule=built.datamodule, verbose=False)
        _report(name, path, built, target if command.run_dir else None)
    return 0


def _report(name: str, path: str, built: Any, target: Path | None) -> None:
    from o2o_lightning.checkpoint.io import write_json

    result, env_id = built.model.result, built.datamodule.env_id
    facts = {
        "checkpoint": path, "env_id": env_id, "policy": built.model.which, "episodes": len(result.returns),
        "env_steps": result.env_steps, "return_mean": result.return_mean, "return_std": float(np.std(result.returns)),
        "score": result.score, "returns": result.returns,
    }  # fmt: skip
    table = Table("policy", "environment", "episodes", "return", "score", title=f"o2o {name}")
    score = "–" if result.score is None else f"{result.score:.1f}"
    spread = f"{result.return_mean:.1f} ± {facts['return_std']:.1f}"
    table.add_row(built.model.which, env_id, str(len(result.returns)), spread, score)
    Console().print(table)
    if target is not None:
        write_json(target, facts)


def _predict(built: Any, target: Path) -> None:
    unit = np.concatenate([part.numpy() for part in built.trainer.predict(built.model, datamodule=built.datamodule)])
    env = built.datamodule.env
    native = unit if env is None else env.action_low + (unit + 1) * (env.action_high - env.action_low) / 2
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, actions=native.astype(np.float32))
    units = "[-1, 1]" if env is None else "the environment's own units"
    say(f"{target}: {len(native):,} actions, in {units}")
