"""A perceptron's parts in a state dict, told apart by their names and put in order by their shapes."""

import re
from dataclasses import dataclass, field
from itertools import chain, pairwise, permutations

import numpy as np

from o2o_lightning.policies.names import meaning, meanings, relative
from o2o_lightning.policies.source import CLONE, Array, BadPolicy, Linear
from o2o_lightning.policies.tensors import D3RLPY, State, linear, numbers

FORM = "linear layers, `NAME.weight` and `NAME.bias`, perhaps `log_std`"
WRAPPERS = re.compile(r"^(module|_orig_mod)\.")
SCALES = (("action_scale", "action_bias"), ("max_action", ""), ("act_limit", ""), ("action_limit", ""))
SPREADS = ("log_std", "log_var", "std")
MOST_GROUPS = 6  # of layers, whose orders are tried


@dataclass
class Parts:
    """What was found.

    Attributes:
        layers: hidden ones, then that of the mean.
        log_std: layer, vector, or None.
        log_std_scale, log_std_offset: affine map of a layer's output.
        on_policy: a value of states alone, by name, where there is one.
        reach: lowest and highest action, where the file scales them.
        notes: what was assumed, by what it is of.
    """

    layers: list[Linear]
    log_std: Linear | Array | None = None
    log_std_scale: float = 1.0
    log_std_offset: float = 0.0
    on_policy: str = ""
    reach: tuple[Array, Array] | None = None
    notes: dict[str, str] = field(default_factory=dict)


def take_apart(state: State) -> Parts:
    """The parts of the policy that ``state`` holds, beside critics and copies, which do not act.

    Raises:
        BadPolicy: something that is not understood and may change actions, or two readings that fit.
    """
    state = {_unwrapped(name): tensor for name, tensor in state.items()}
    if any("_encoder._layers." in name for name in state):
        raise BadPolicy(D3RLPY)
    own, values = _split(state)
    modules = [name.removesuffix(".weight") for name in own if name.endswith(".weight")]
    if not modules:
        raise BadPolicy(f"none of its tensors ({', '.join([*state][:3])}, …) is a layer that acts. Pass {FORM}.")
    loose = {name for name in own if re.sub(r"\.(weight|bias)$", "", name) not in modules}
    short = relative([*modules, *loose])
    said = {name: _said(place) for name, place in short.items()}
    for name in modules:
        if own[f"{name}.weight"].ndim != 2:
            raise BadPolicy(f"'{name}' is no linear layer but a normalisation, or of images. {CLONE}")
    heads = [name for name in modules if said[name] in SPREADS]
    trunk = [name for name in modules if name not in heads]
    if not trunk:
        raise BadPolicy(f"'{heads[0]}' tells how far actions spread, and no layer tells their mean. Pass {FORM}.")
    order = _in_order(own, trunk, short, said)
    parts = Parts([linear(own, name) for name in order])
    inputs, actions = parts.layers[0][0].shape[1], parts.layers[-1][0].shape[0]
    parts.on_policy = _value_of_states(state, values, inputs, actions)
    _take_scales(parts, own, loose)
    _take_spread(parts, own, heads, sorted(loose), said)
    return parts


def _unwrapped(name: str) -> str:
    while WRAPPERS.match(name):
        name = WRAPPERS.sub("", name)
    return name


def _split(state: State) -> tuple[State, list[str]]:
    """The tensors that may act, and the names of those that value states or actions."""
    own, values = {}, []
    for name, tensor in state.items():
        words = meanings(name.removesuffix(".weight").removesuffix(".bias"))
        if "value" in words:
            values.append(name)
        elif "copy" not in words and (tensor.ndim or tensor.is_floating_point()):
            own[name] = tensor
    return own, values


def _said(place: str) -> str | None:
    """One of ``SPREADS``, or ``mean`` where the name is of anything else that acts."""
    words = meanings(place)
    return next((word for word in words if word in SPREADS), "mean" if words else None)


def _in_order(state: State, names: list[str], short: dict[str, str], said: dict[str, str | None]) -> list[str]:
    """The layers from observations to the mean: numbered ones by number, groups of them as their shapes fit."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "#", short[name]), []).append(name)
    for place, members in groups.items():
        members.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", short[name])])
        _check_numbers(place, [short[name] for name in members])
    given = sorted(groups.values(), key=lambda members: said[members[-1]] is not None)  # what is named an action, last
    tried = permutations(given) if len(given) <= MOST_GROUPS else [given]
    fitting = [order for order in ([*chain(*found)] for found in tried) if _chains(state, order)]
    if fitting:
        ends = {order[-1]: said[order[-1]] for order in fitting}
        told = [name for name, word in ends.items() if word is not None]
        if len(ends) > 1 and len(told) != 1:
            raise _two(*[*ends][:2])
        return next(order for order in fitting if len(ends) == 1 or order[-1] == told[0])
    before, after = next(pair for pair in pairwise(chain(*given)) if not _chains(state, [*pair]))
    if _shape(state, before) == _shape(state, after):
        raise _two(before, after)
    raise BadPolicy(
        f"'{after}' takes {_shape(state, after)[1]} values, '{before}' gives {_shape(state, before)[0]}. "
        f"Pass a state dict of {FORM}."
    )


def _two(one: str, other: str) -> BadPolicy:
    return BadPolicy(
        f"'{one}' and '{other}' fit alike as its last layer. Name them, as `mean` and `log_std`, or save one of them."
    )


def _check_numbers(place: str, names: list[str]) -> None:
    """Refuses a sequence with a gap, as of a file from which layers were lost."""
    found = [[int(number) for number in re.findall(r"\d+", name)] for name in names]
    varying = [numbered for numbered in zip(*found, strict=True) if len({*numbered}) > 1]
    for numbered in varying:
        steps = {after - before for before, after in pairwise(numbered)}
        if len(varying) == 1 and (len(steps) > 1 or numbered[0] > 1):
            raise BadPolicy(
                f"of its layers '{place}' only {[*numbered]} are there, so one is missing. Pass another file."
            )


def _shape(state: State, name: str) -> tuple[int, ...]:
    return tuple(state[f"{name}.weight"].shape)


def _chains(state: State, order: list[str]) -> bool:
    shapes = [_shape(state, name) for name in order]
    return all(after[1] == before[0] for before, after in pairwise(shapes))


def _value_of_states(state: State, values: list[str], inputs: int, actions: int) -> str:
    """A layer of a value that is not of actions too; no name where there is none."""
    layers = [name for name in values if name.endswith(".weight") and state[name].ndim == 2]
    of_both = any(state[name].shape[1] == inputs + actions for name in layers)
    return "" if of_both or not layers else layers[0].removesuffix(".weight")


def _take_scales(parts: Parts, state: State, loose: set[str]) -> None:
    for scale, bias in SCALES:
        found = {word: name for name in loose for word in (scale, bias) if word and name.rpartition(".")[2] == word}
        if scale in found:
            half = np.broadcast_to(numbers(state, found[scale]).ravel(), (len(parts.layers[-1][1]),))
            middle = numbers(state, found[bias]).ravel() if bias in found else 0.0
            parts.reach = middle - half, middle + half
            loose -= {*found.values()}


def _take_spread(parts: Parts, state: State, heads: list[str], loose: list[str], said: dict[str, str | None]) -> None:
    """σ from the layer or the vector that its name gives, as a logarithm."""
    if len(heads) + len(loose) > 1 or (loose and said[loose[0]] not in SPREADS):
        strange = next((name for name in loose if said[name] not in SPREADS), (heads + loose)[0])
        raise BadPolicy(
            f"beside its layers it holds '{strange}', which is not understood and may change actions. Pass a state "
            "dict without it, and observation statistics as --normalizer."
        )
    for name in heads:
        word = said[name]
        if word == "std" and not any("preprocess" in other for other in state):  # tianshou's `sigma` is log σ
            raise BadPolicy(f"'{name}' gives σ and no log σ. {CLONE}")
        parts.log_std = linear(state, name)
        parts.log_std_scale = 0.5 if word == "log_var" else 1.0
        if any("action_scale" in other for other in state) and re.search(r"logstd$", name):  # CleanRL's SAC
            parts.log_std_scale, parts.log_std_offset = 3.5, -1.5
            parts.notes["spread"] = (
                "its log σ goes through a tanh to [−5, 2], here it is −1.5 + 3.5 x: it explores otherwise"
            )
    for name in loose:
        vector, word = numbers(state, name).ravel(), said[name]
        if word == "std" and not re.search(r"sigma_param|a2c_network", name):  # whose σ are logarithms
            if meaning(name.rpartition(".")[2]) != "std" or not (vector > 0).all() or "sigma" in name:
                raise BadPolicy(f"'{name}' could be σ or log σ. Name it `std` or `log_std`.")
            vector = np.log(vector)
        vector = vector / 2 if word == "log_var" else vector
        actions = len(parts.layers[-1][1])
        parts.log_std = np.full(actions, vector[0]) if vector.size == 1 else vector
