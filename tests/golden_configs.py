"""The composed configuration of every phase, method and dataset, as ``o2o fit --print_config`` prints it, made flat.

A row is one flat dictionary, the arguments of a phase and of a method inside it merged, without paths of classes: where
an argument lives, and what the classes are called, may change. The file holds what the rows share once.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".json")
PRESET = "preset=paper"  # what the record was made of
CONFIGS = Path(__file__).parents[1] / "configs"
# what came after the record was made
SINCE = {
    "online": (
        "aca",
        "awac",
        "cal_ql",
        "cql",
        "enoto",
        "fam_o2o",
        "iql",
        "jsrl",
        "odt",
        "off2on",
        "pa_rl",
        "pex",
        "proto",
        "proto_td3",
        "rebrac",
        "rlpd",
        "so2",
        "spot",
        "uni_o4",
        "wsrl",
    ),
    "offline": ("aca", "cal_ql", "enoto", "fam_o2o", "off2on", "rebrac", "spot", "uni_o4", "wsrl"),
}
OFFLINE, ONLINE, DATASETS, EXPERIMENTS = (
    sorted(file.stem for file in (CONFIGS / group).glob("[!_]*.yaml") if file.stem not in SINCE.get(group, ()))
    for group in ("offline", "online", "dataset", "experiment")
)
ONLINE_PHASES = ("clone", "reevaluate", "align", "online")
# what is typed after `o2o fit --phase`
ROWS = [
    *(f"offline offline={method} dataset={dataset}" for method in OFFLINE for dataset in DATASETS),
    *(
        f"{phase} online={method} dataset={dataset}"
        for phase in ONLINE_PHASES
        for method in ONLINE
        for dataset in DATASETS
    ),
    *(
        f"{phase} online={method} dataset=hopper-medium-v2 experiment={experiment}"
        for phase in ONLINE_PHASES[1:]
        for method in ONLINE
        for experiment in EXPERIMENTS
    ),
]
Row = dict[str, Any]


def printed(*argv: str) -> dict[str, Any] | None:
    """The configuration that ``o2o fit … --print_config`` prints; None where it refuses, or prints nothing."""
    from o2o_lightning.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        code = main(["fit", *argv, "--print_config"])
    return None if code else yaml.safe_load(output.getvalue())


def recomputed(names: Iterable[str]) -> dict[str, Row]:
    """The rows of these names, without those that are refused."""
    rows = {}
    for name in names:
        phase, *tokens = name.split()
        data = ["--data.dataset=a.hdf5"] if "dataset=file" in tokens else []
        config = printed("--phase", phase, PRESET, *tokens, *data)
        if config is not None:
            rows[name] = flat(config)
    return rows


def flat(value: Any, where: str = "") -> Row:
    """The leaves of a configuration by dotted name, sorted; of a class only its arguments, a method's merged.

    Raises:
        ValueError: a phase and its method have an argument of the same name, with different values.
    """
    if isinstance(value, dict) and "class_path" in value:
        return flat(value.get("init_args") or {}, where)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {where: value}
    leaves: Row = {}
    for key, item in value.items():
        inside = key == "method" and isinstance(item, dict) and "class_path" in item
        for name, leaf in flat(item, where if inside else f"{where}.{key}".lstrip(".")).items():
            if leaves.setdefault(name, leaf) != leaf:
                raise ValueError(f"{name}: {leaves[name]!r} of the phase, {leaf!r} of its method")
    return dict(sorted(leaves.items()))


def packed(rows: dict[str, Row]) -> str:
    """The rows as JSON, a line each: what all share, what each phase and method adds, and the rest."""
    everywhere = most_frequent(rows.values())
    kinds = {
        kind: most_frequent(rows[name] for name in rows if kind_of(name) == kind)
        for kind in dict.fromkeys(map(kind_of, rows))
    }
    parts = {
        "everywhere": {key: [value] for key, value in everywhere.items()},
        "kinds": {kind: less(row, everywhere) for kind, row in kinds.items()},
        "rows": {name: less(row, kinds[kind_of(name)]) for name, row in rows.items()},
    }
    blocks = []
    for part, content in parts.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
        blocks.append(f'"{part}": {{\n' + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def unpacked(text: str) -> dict[str, Row]:
    """The rows of :func:`packed`."""
    parts = json.loads(text)
    everywhere = more(parts["everywhere"], {})
    kinds = {kind: more(changes, everywhere) for kind, changes in parts["kinds"].items()}
    return {name: more(changes, kinds[kind_of(name)]) for name, changes in parts["rows"].items()}


def differences(expected: dict[str, Row], found: dict[str, Row]) -> list[str]:
    """A line for each row that differs, with what differs in it."""
    lines = []
    for name in {**expected, **found}:
        if name not in found or name not in expected:
            lines.append(f"{name}: {'missing, or refused now' if name in expected else 'new, or refused before'}")
            continue
        old, new = expected[name], found[name]
        keys = [key for key in {**old, **new} if [*map(repr, said(old, key))] != [*map(repr, said(new, key))]]
        changes = "; ".join(f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys)
        lines += [f"{name}: {changes}"] if keys else []
    return lines


def kind_of(name: str) -> str:
    """Phase and method of a row."""
    return " ".join(name.split()[:2])


def most_frequent(rows: Iterable[Row]) -> Row:
    """Of each name the value that most rows have, if more rows have it than lack it."""
    rows = list(rows)
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for key, value in row.items():
            counts.setdefault(key, Counter())[json.dumps(value)] += 1
    usual = {key: count.most_common(1)[0] for key, count in sorted(counts.items())}
    return {
        key: json.loads(value) for key, (value, count) in usual.items() if 2 * sum(counts[key].values()) > len(rows)
    }


def less(row: Row, base: Row) -> dict[str, list[Any]]:
    """``row`` as its changes to ``base``: a list of the value, or an empty one where it is absent."""
    keys = sorted({**base, **row})
    return {key: said(row, key) for key in keys if [*map(repr, said(row, key))] != [*map(repr, said(base, key))]}


def more(changes: dict[str, list[Any]], base: Row) -> Row:
    """The inverse of :func:`less`."""
    row = {**base, **{key: value[0] for key, value in changes.items() if value}}
    return {key: row[key] for key in sorted(row) if changes.get(key) != []}


def said(row: Row, key: str) -> list[Any]:
    """The value of ``key`` in a list, which is empty without one; told apart by ``repr``: 1, 1.0 and true are equal."""
    return [row[key]] if key in row else []
