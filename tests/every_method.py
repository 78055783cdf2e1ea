"""Every method, small, with networks and random batches of its own; for what must hold in all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from o2o_lightning.methods import aca, off2on, rebrac, uni_o4
from o2o_lightning.methods.awac import AWAC
from o2o_lightning.methods.bc import BC
from o2o_lightning.methods.cal_ql import CalQL
from o2o_lightning.methods.clone import Clone
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.dt import DT
from o2o_lightning.methods.enoto import ENOTO
from o2o_lightning.methods.fam_o2o import FamO2O
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.jsrl import JSRL
from o2o_lightning.methods.method import Draws, Method, Normal, Task
from o2o_lightning.methods.o2 import ppo, sac, td3
from o2o_lightning.methods.o2.constraint import Multiplier
from o2o_lightning.methods.odt import ODT, OnlineODT
from o2o_lightning.methods.pa_rl import PARL
from o2o_lightning.methods.pex import PEX
from o2o_lightning.methods.ppo import PPO
from o2o_lightning.methods.proto import PROTO, PROTOTD3
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.methods.sac import SAC
from o2o_lightning.methods.so2 import SO2
from o2o_lightning.methods.spot import SPOT
from o2o_lightning.methods.td3 import TD3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.methods.wsrl import WSRL
from o2o_lightning.nn.critics import Critics, ValueNet

S, A, B, T = 5, 3, 16, 4
HIDDEN = (8, 8)
TASK = Task(S, A, total=100, horizon=20, best_return=10.0)
WINDOWS: dict[str, Any] = {"context": T, "acting_context": T, "width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
SEARCH: dict[str, Any] = {"candidates": 4, "kept": 2, "samples": 2, "ascent_steps": 2, "ascent_rate": 0.05}
CLONES: dict[str, Any] = {"members": 2, "models": 3, "horizon": 3, "improvement_lr": 0.01}
CLONES |= dict.fromkeys(("hidden", "critic_hidden", "value_hidden", "model_hidden"), HIDDEN)
CONTROLLED = Multiplier(rule="pi", integral=0.3)

METHODS: dict[str, Callable[[], Method]] = {
    "td3": lambda: TD3(hidden=HIDDEN),
    "td3_bc": lambda: TD3BC(hidden=HIDDEN),
    "sac": lambda: SAC(hidden=HIDDEN, critic_hidden=HIDDEN),
    "sac, ten critics": lambda: SAC(hidden=HIDDEN, critic_hidden=HIDDEN, critics=10, layer_norm=True),
    "cql": lambda: CQL(hidden=HIDDEN, critic_hidden=HIDDEN, samples=3),
    "cql, AntMaze": lambda: CQL(
        hidden=HIDDEN, critic_hidden=HIDDEN, samples=3, lagrange_gap=0.8, gap_min=-200.0, max_target=True
    ),
    "cal_ql": lambda: CalQL(hidden=HIDDEN, critic_hidden=HIDDEN, samples=3),
    "iql": lambda: IQL(hidden=HIDDEN),
    "awac": lambda: AWAC(hidden=HIDDEN),
    "rlpd": lambda: RLPD(hidden=HIDDEN, critic_hidden=HIDDEN, critics=4, policy_every=2),
    "wsrl": lambda: WSRL(hidden=HIDDEN, critic_hidden=HIDDEN, critics=4, policy_every=2),
    "cql, four critics": lambda: CQL(hidden=HIDDEN, critic_hidden=HIDDEN, samples=2, critics=4, subset=2),
    "enoto": lambda: ENOTO(hidden=HIDDEN, critic_hidden=HIDDEN, critics=4),
    "so2": lambda: SO2(hidden=HIDDEN, critic_hidden=HIDDEN, critics=3, values_first=2),
    "fam_o2o": lambda: FamO2O(hidden=HIDDEN),
    "fam_o2o online": lambda: FamO2O(hidden=HIDDEN, uniform_balance=False),
    "iql, one after the other": lambda: IQL(hidden=HIDDEN, order="value_first", actor_schedule="restart"),
    "aca offline": lambda: aca.Offline(hidden=HIDDEN, critic_hidden=HIDDEN),
    "aca online": lambda: aca.ACA(hidden=HIDDEN, critic_hidden=HIDDEN),
    "pex": lambda: PEX(hidden=HIDDEN),
    "pa_rl": lambda: PARL(critic_hidden=HIDDEN, critics=3, **SEARCH),
    "pa_rl, distributions": lambda: PARL(
        critic_hidden=HIDDEN, critics=2, new_critics=True, support=(-5.0, 5.0, 7), **SEARCH
    ),
    "off2on offline": lambda: off2on.Offline(hidden=HIDDEN, critic_hidden=HIDDEN, samples=2, members=2),
    "off2on online": lambda: off2on.Off2On(ratio_hidden=HIDDEN),
    "proto": lambda: PROTO(hidden=HIDDEN, critic_hidden=HIDDEN, critics=2),
    "proto_td3": lambda: PROTOTD3(hidden=HIDDEN),
    "rebrac offline": lambda: rebrac.Offline(hidden=HIDDEN),
    "rebrac": lambda: rebrac.ReBRAC(hidden=HIDDEN),
    "spot": lambda: SPOT(hidden=HIDDEN, vae_hidden=HIDDEN, vae_updates=2),
    "jsrl": lambda: JSRL(hidden=HIDDEN, critic_hidden=HIDDEN, critics=2, policy_every=2),
    "bc": lambda: BC(hidden=HIDDEN),
    "bc, a density": lambda: BC(family="squashed_gaussian", hidden=HIDDEN),
    "clone": lambda: Clone(family="gaussian", hidden=HIDDEN),
    "dt": lambda: DT(**WINDOWS),
    "odt": lambda: ODT(**WINDOWS),
    "odt online": lambda: OnlineODT(**WINDOWS),
    "ppo": lambda: PPO(hidden=HIDDEN, value_hidden=HIDDEN),
    "uni_o4 offline": lambda: uni_o4.Offline(**CLONES),
    "uni_o4 offline, behind its gate": lambda: uni_o4.Offline(improvement=0.98, gate_every=1, **CLONES),
    "uni_o4 offline, behind the code's gate": lambda: uni_o4.Offline(
        improvement=0.98, gate_every=1, gate="record", **CLONES
    ),
    "uni_o4 online": uni_o4.UniO4,
    "o2td3 reevaluate": lambda: td3.Reevaluate(hidden=HIDDEN),
    "o2td3 align": td3.Align,
    "o2td3 online": td3.Online,
    "o2td3 online, multiplier every third": lambda: td3.Online(multiplier=Multiplier(every=3)),
    "o2td3 online, controlled multiplier": lambda: td3.Online(multiplier=CONTROLLED, penalty_limit=0.1),
    "o2sac online, controlled multiplier": lambda: sac.Online(multiplier=CONTROLLED, penalty_limit=0.1),
    "o2sac reevaluate": lambda: sac.Reevaluate(hidden=HIDDEN),
    "o2sac align": sac.Align,
    "o2sac online": sac.Online,
    "o2sac online, one of its critics": lambda: sac.Online(subset=1),
    "o2ppo reevaluate": lambda: ppo.Reevaluate(hidden=HIDDEN),
    "o2ppo online": ppo.Online,
}


class Networks:
    """What a method finds in the checkpoint of the phase before."""

    def __init__(self, phase: str, method: Method) -> None:
        self.phase, self.method = phase, method

    def has(self, name: str) -> bool:
        return hasattr(self.method, name)

    def build_actor(self, name: str = "actor") -> Any:
        return copy.deepcopy(getattr(self.method, name if self.has(name) else "actor")).requires_grad_(True)

    def build_policy(self) -> Any:
        return self.build_actor()

    def build_critic(self, name: str = "critic") -> Critics:
        return copy.deepcopy(getattr(self.method, name))

    def build_value(self) -> ValueNet | None:
        return copy.deepcopy(getattr(self.method, "value", None))

    def load(self, net: nn.Module, name: str) -> nn.Module:
        net.load_state_dict(getattr(self.method, name).state_dict())
        return net

    def load_scalar(self, parameter: nn.Parameter, name: str) -> None:
        parameter.data.copy_(getattr(self.method, name, parameter))


SOURCES: dict[str, Callable[[], Method]] = {"o2td3": METHODS["td3"], "o2sac": METHODS["sac"], "o2ppo": METHODS["ppo"]}
OWN = ("aca online", "off2on online", "uni_o4 online")
SOURCES |= {name: METHODS[name.replace("online", "offline")] for name in OWN}
SOURCES |= {"fam_o2o online": METHODS["fam_o2o"], "odt online": METHODS["odt"]}
SOURCES |= {**dict.fromkeys(("jsrl", "pex", "pa_rl", "pa_rl, distributions"), METHODS["iql"])}


def built(name: str, seed: int = 0) -> Method:
    """The method of that name with networks of its own; those of the paper are made from another's."""
    torch.manual_seed(seed)
    method, source = METHODS[name](), None
    kind = name if name in SOURCES else name.split(" ")[0]
    if kind in SOURCES:
        before = SOURCES[kind]()
        before.build(TASK)
        source = Networks("reevaluate" if "align" in name else "align" if "online" in name else "offline", before)
    method.build(TASK, source)
    return method


def columns(*lead: int) -> dict[Any, Tensor]:
    """Everything that any method reads of a batch: ``[…, B, …]``, for windows ``[…, B, T, …]``."""
    states, actions = torch.randn(*lead, B, S), torch.randn(*lead, B, A)
    flags = (torch.rand(*lead, B) < 0.1).float()
    return {
        "observation": states,
        "action": actions.clamp(-0.99, 0.99),
        "reward": torch.randn(*lead, B),
        "return_to_go": torch.randn(*lead, B),
        ("next", "observation"): torch.randn(*lead, B, S),
        ("next", "terminated"): flags,
        ("next", "truncated"): flags,
        **{
            name: torch.tanh(torch.randn(*lead, B, A))
            for name in ("next_offline_action", "anchor", "teacher_action", "next_action")
        },
        **{name: torch.randn(*lead, B, A) for name in ("next_offline_mean", "offline_mean")},
        **{name: torch.randn(*lead, B, A) - 1.0 for name in ("next_offline_log_std", "offline_log_std")},
        **{name: torch.randn(*lead, B) for name in ("anchor_value", "anchor_log_prob", "log_prob", "advantage")},
        **{name: torch.randn(*lead, B) for name in ("value", "value_target")},
    }


def windows(*lead: int) -> dict[Any, Tensor]:
    """A batch of a sequence model."""
    return {
        "observation": torch.randn(*lead, B, T, S),
        "action": torch.randn(*lead, B, T, A).clamp(-0.99, 0.99),
        "return_to_go": torch.randn(*lead, B, T),
        "timestep": torch.randint(0, 10, (*lead, B, T)),
        "real": torch.rand(*lead, B, T) < 0.9,
    }


def batches(method: Method, *lead: int) -> dict[Any, Tensor]:
    """Batches ``[…, B, …]`` of the kind that the method reads."""
    return windows(*lead) if "window" in method.needs else columns(*lead)


def noises(method: Method, *lead: int) -> dict[str, Tensor]:
    """Noise of the shapes that the method declares, ``[…, …]``."""
    shape = (B, T, A) if "window" in method.needs else (B, A)
    declared: Draws = method.noise(shape)
    return {
        name: torch.randn(*lead, *form.shape) if isinstance(form, Normal) else torch.rand(*lead, *form.shape) * 2 - 1
        for name, form in declared.items()
    }


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    """As a phase makes it."""
    groups = []
    for name, (part, rate) in method.learners().items():
        parameters = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        groups.append({"params": parameters, "lr": rate, "name": name})
    return method.optimizer(groups)
