"""The card of a policy: what it is, what it was made from, what it is worth, how to load it."""

from typing import Any

import yaml

from o2o_lightning.checkpoint.run import policy_to_take
from o2o_lightning.report.figures import unit
from o2o_lightning.report.groups import COSTS, MEASURES, Group
from o2o_lightning.report.page import Block, Bullets, Heading, Table, Text, duration, markdown
from o2o_lightning.report.runs import Run, method_name

LOAD = """\
```python
from o2o_lightning import load_policy

policy = load_policy("{file}")
action = policy(observation)    # raw observations [S] or [B, S] to actions in the units of {env}
```

`o2o test --ckpt_path {file}` evaluates it, `o2o play {file}` shows it."""


def card(run: Run, file: str | None = None) -> str:
    """``README.md`` of a run directory, in Markdown with the front matter that model hubs read.

    Args:
        run: what it is about.
        file: where the policy is, seen from the card; in the run directory without it.
    """
    file = file or str(policy_to_take(run.path / run.phase).relative_to(run.path))
    group, last = Group(run.method, [run]), run.phases[run.phase]
    known = {name: group.column(name)[0] for name in MEASURES if group.column(name)[0] == group.column(name)[0]}
    phases = [
        [phase, method_name(of["algorithm"]), f"{of['steps']:,}", f"{of['env_steps']:,}", duration(of["seconds"])]
        for phase, of in run.phases.items()
    ]
    blocks: list[Block] = [
        Heading(f"{run.method}, {run.env_id}, {run.dataset}", 1),
        Text(f"A policy of {run.env_id}, made by o2o-lightning."),
        Heading("Made from"),
        Bullets([f"{name}: {value}" for name, value in _origin(run, last).items() if value]),
        Table(["phase", "method", "updates", "environment steps", "time"], phases),
        Heading(f"Worth ({unit([group])})"),
        Table(["measure", "value", "what it is"], [[key, f"{known[key]:.4g}", MEASURES[key]] for key in known]),
        Text(f"{int(run.total('eval_env_steps')):,} {COSTS['eval_env_steps']} were spent beside those of training."),
        Heading("How to load it"),
        Text(LOAD.format(file=file, env=run.env_id)),
    ]
    return f"---\n{yaml.safe_dump(_front(run, known), sort_keys=False)}---\n\n{markdown(blocks)}"


def _origin(run: Run, last: Any) -> dict[str, str]:
    source = last.get("source") or {}
    return {
        "dataset": run.dataset,
        "sha256 of the dataset": last.get("dataset_sha256") or "",
        "offline method": method_name(source["origin"]) if source.get("origin") else "",
        "started from phase": source.get("phase") or "",
        "seed": f"{run.seed}",
        "versions": ", ".join(f"{name} {version}" for name, version in (last.get("versions") or {}).items()),
    }


def _front(run: Run, known: dict[str, float]) -> dict[str, Any]:
    tags = ["reinforcement-learning", "offline-to-online", run.env_id, run.algorithm]
    front = {"library_name": "o2o-lightning", "tags": tags}
    if "final" not in known:
        return front
    metric = {"type": "d4rl_score" if run.scored else "mean_reward", "value": round(float(known["final"]), 4)}
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": run.env_id, "type": run.env_id},
        "metrics": [metric],
    }
    return {**front, "model-index": [{"name": run.method, "results": [result]}]}
