"""What devices and precisions a phase runs on."""

import os
import shutil
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy

from o2o_lightning.errors import UserError
from o2o_lightning.phases.products import settle_library

Digits = Literal["highest", "high", "medium"] | None
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
PAYS_BACK_ON_A_GPU = 20_000  # updates; eager ones took 1.8 to 7.8 times as long as compiled ones on an H200
ON_A_GPU = "single steps on a GPU wait for the host; without --model.compile false updates are captured whole"


def check_hardware(trainer: Any) -> None:
    """Refuses a strategy that splits networks, and a precision that rounds the weights themselves."""
    strategy, precision = trainer.strategy, str(trainer.precision)
    splits = isinstance(strategy, DeepSpeedStrategy) or not isinstance(strategy, DDPStrategy)
    if isinstance(strategy, ParallelStrategy) and splits:
        raise UserError(
            f"--trainer.strategy {type(strategy).__name__}: it splits networks that are far too small for it. "
            "Pass --trainer.strategy ddp."
        )
    if precision not in PRECISIONS:
        raise UserError(f"--trainer.precision {precision}: one of {', '.join(PRECISIONS)} is needed.")


def settle_products(trainer: Any, products: Digits) -> None:
    """Decides who forms the networks' products, and how exact those of 32 bits are."""
    if trainer.strategy.root_device.type == "cpu":
        settle_library()
    set_products(products)


def set_products(products: Digits) -> None:
    """Tells torch how exact products of 32 bits are from now on, if that is asked for."""
    if products is not None:
        torch.set_float32_matmul_precision(products)


def check_compiler() -> None:
    """Refuses compiling on a CPU without a C++ compiler."""
    if not (torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++"))):
        raise UserError(
            "--model.compile true: it needs a C++ compiler, and there is no g++. Install one, or name it in the "
            "environment variable CXX."
        )


def check_compilable(trainer: Any, processes: int) -> None:
    """Refuses what ``--model.compile true`` cannot have: its gradients are formed in the graph, with the loss."""
    if processes > 1:
        raise UserError("--model.compile true: it takes one process. Leave it out, or pass --trainer.devices 1.")
    if str(trainer.precision) == "16-mixed":
        raise UserError(
            "--model.compile true: it does not scale losses as --trainer.precision 16-mixed must. Leave it out, or "
            "pass --trainer.precision bf16-mixed."
        )


def check_stackable(trainer: Any, compiles: bool) -> None:
    """Refuses what the seeds of one process cannot have."""
    if isinstance(trainer.strategy, ParallelStrategy) or trainer.world_size > 1:
        raise UserError("seeds=: one process on one device makes them all. Pass --trainer.devices 1.")
    if str(trainer.precision) != "32-true":
        raise UserError(f"seeds=: --trainer.precision {trainer.precision} has not been shown to hold. Leave it out.")
    if compiles:
        raise UserError("seeds=: --model.compile true is for one seed. Leave one of them out.")
    if any(kind.__name__ == "WandbLogger" for logger in trainer.loggers for kind in type(logger).__mro__):
        raise UserError("seeds=: a process is one run of W&B. Pass logger=csv or logger=tensorboard.")


def forms_at_once(trainer: Any, compiles: bool) -> bool:
    """Whether one product forms a layer of all members of an ensemble: where a launch takes longer than the product."""
    alone = not isinstance(trainer.strategy, ParallelStrategy)
    return trainer.strategy.root_device.type != "cpu" and alone and str(trainer.precision) == "32-true" and not compiles


def compile_note(device: torch.device, compiles: bool, pays_back: int | None, updates: int) -> str | None:
    """What to say of compiling, or of not, in a phase of so many ``updates``, of which ``pays_back`` earn it."""
    if device.type != "cpu":
        return None if compiles or updates < PAYS_BACK_ON_A_GPU else ON_A_GPU
    if pays_back is None:
        return "compiling, which is not known to pay back in this phase" if compiles else None
    earned = f"earns its compilation after about {pays_back:,} updates; this phase makes {updates:,}"
    if compiles:
        return f"compiling, which takes some seconds to a minute and {earned}"
    return f"--model.compile true {earned}" if updates >= 2 * pays_back else None
