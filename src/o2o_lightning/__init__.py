"""Fine-tune any offline policy online, without the collapse.

What a script or a notebook needs, each loaded when it is first asked for, so that the import costs nothing::

    from o2o_lightning import OfflineData, load_policy
"""

import importlib
from typing import Any

_HOMES = {
    "data.module": ("OfflineData",),
    "data.online": ("OnlineData",),
    "data.rollout": ("RolloutData",),
    "errors": ("UserError",),
    "phases": ("Align", "ClonePolicy", "Offline", "OnPolicy", "Online", "Reevaluate"),
    "phases.evaluate": ("EvaluatePolicy",),
    "phases.trainer": ("run_trainer",),
    "policies.load": ("LoadedPolicy", "load_policy"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("o2o-lightning")
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
