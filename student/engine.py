"""The engine under a stage: which one was asked for, which one runs, and whose tensors are whole.

Launched by `accelerate launch` or `torchrun`, a stage runs under DDP, FSDP2 or DeepSpeed ZeRO-2.
Everything that differs between them is here: to the loop a model is a model, and a checkpoint
holds whole tensors by name. In all of them weights, optimizer and heads are fp32; bf16 is the
body's arithmetic alone.

FSDP2 is torch's own `fully_shard`, called here: Accelerate casts what a sharded model gives to
bf16, the heads' vectors included, wants the layers' class in its configuration, and leaves FSDP out
on a CPU without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch import distributed as dist

from student.attention import attend_in_fp32
from student.body import Unloaded, body_layers
from student.checkpoint import OptimizerState
from student.launcher import Name, asked_for, started
from student.model import Student
from student.spec import StudentError
from student.stages import StageError, StageSpec

Precision = Literal["auto", "fp32", "bf16"]


@dataclass
class Engine:
    """A stage's engine. After `prepare`: the model to call and the optimizer to step."""

    name: Name
    accelerator: Accelerator
    bf16: bool
    model: nn.Module = field(init=False)
    optimizer: Any = field(init=False)
    trained: dict[str, nn.Parameter] = field(init=False)
    """What the optimizer moves, by name."""

    @classmethod
    def start(cls, precision: Precision, *, cpu: bool) -> Engine:
        """Join the launcher's other processes.

        Raises:
            StudentError: the engine or the number of processes is not what was asked for.
        """
        name = asked_for()
        deepspeed, gpu = name == "ZeRO-2", torch.cuda.is_available()
        handlers = []
        if deepspeed and not gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            handlers = [InitProcessGroupKwargs(backend="gloo")]
        elif deepspeed and cpu:
            raise StudentError(
                "DeepSpeed runs on this machine's GPUs: leave out --cpu, or use FSDP"
            )
        bf16 = precision == "bf16" or (
            precision == "auto" and gpu and not cpu and torch.cuda.is_bf16_supported()
        )
        accelerator = Accelerator(
            # DeepSpeed would turn the weights themselves, the heads' included, into bf16.
            mixed_precision="bf16" if bf16 and not deepspeed else "no",
            # Accelerate leaves DeepSpeed out without a word where it is told to stay on the CPU.
            cpu=cpu and not deepspeed,
            kwargs_handlers=handlers,
        )
        if accelerator.gradient_accumulation_steps != 1:
            raise StudentError(
                "the launcher asks for gradient_accumulation_steps, which would only divide the "
                "loss; leave it out, and give the stage a micro_batch"
            )
        if accelerator.num_processes != started():
            raise StudentError(
                f"{started()} processes were started, but each would train alone: no GPU was "
                "found; to train on the CPU give --cpu"
            )
        if deepspeed != (accelerator.distributed_type == DistributedType.DEEPSPEED):
            raise StudentError(f"asked for {name}, found {accelerator.distributed_type.value}")
        return cls(name, accelerator, bf16)

    @property
    def describes(self) -> dict[str, Any]:
        """What runs, for people and for `run.json`."""
        return {
            "engine": self.name,
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "precision": "bf16" if self.bf16 else "fp32",
        }

    def check(self, spec: StageSpec) -> None:
        """Refuse a stage that asks of the engine what it cannot do.

        Raises:
            StageError: micro batches under DeepSpeed.
        """
        if spec.micro_batch and self.name == "ZeRO-2":
            raise StageError(
                "DeepSpeed takes a step with every backward pass, so micro_batch cannot be used "
                "with it; use recipes/accelerate/fsdp.yaml"
            )

    def prepare(
        self, student: Student, trained: Mapping[str, nn.Parameter], spec: StageSpec
    ) -> None:
        """Hand the engine the student, with its weights, on its device; make the optimizer."""
        if self.bf16 and self.accelerator.device.type == "cpu":
            attend_in_fp32(student.text)
            if student.vision is not None:
                attend_in_fp32(student.vision.encoder)
        if self.name == "FSDP2":
            solved = student.parameters_of(tuple(spec.closed_form))
            _shard(student, {**trained, **solved}, self.accelerator.device)
        parameters = dict(student.named_parameters())
        self.trained = {name: parameters[name] for name in trained}
        optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=spec.learning_rate,
            betas=spec.betas,
            weight_decay=spec.weight_decay,
        )
        if self.name == "FSDP2":
            self.model, self.optimizer = student, optimizer
            return
        if self.name == "ZeRO-2":
            self._configure(spec)
        self.model, self.optimizer = self.accelerator.prepare(student, optimizer)

    def weights(self, names: Iterable[str], student: nn.Module) -> dict[str, Tensor]:
        """The named parameters, whole, on the CPU of the first process; empty on the others.

        All processes must call it.
        """
        parameters = dict(student.named_parameters())
        return self._gathered({name: parameters[name].detach() for name in names})

    def optimizer_state(self) -> OptimizerState:
        """What the optimizer keeps of each parameter, on the first process; empty on the others.

        All processes must call it.
        """
        return {
            name: self._gathered(self._state_of(parameter))
            for name, parameter in self.trained.items()
        }

    def load_optimizer(self, saved: OptimizerState) -> None:
        """Give the optimizer back what `optimizer_state` gave."""
        if self.name == "ZeRO-2":
            self._load_partitions(saved)
            return
        for name, parameter in self.trained.items():
            self.optimizer.state[parameter] = {
                # AdamW counts its steps on the CPU.
                kind: value if kind == "step" else _like(parameter, value)
                for kind, value in saved[name].items()
            }

    def _gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            whole = _whole(tensor)
            if self.accelerator.is_main_process:
                found[name] = whole.to("cpu", copy=True).contiguous()
        return found

    def _configure(self, spec: StageSpec) -> None:
        plugin = self.accelerator.deepspeed_plugin
        config = plugin.deepspeed_config
        if plugin.zero_stage > 2:
            raise StudentError(
                "DeepSpeed's stage 3 is not used here; use recipes/accelerate/fsdp.yaml"
            )
        config["train_micro_batch_size_per_gpu"] = spec.batch_size // self.accelerator.num_processes
        config["gradient_clipping"] = spec.clip or 0.0
        if self.bf16:
            # The list names what may send its gradients in bf16: nothing.
            config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if self.name != "ZeRO-2":
            return dict(self.optimizer.state[parameter])
        from deepspeed.utils import safe_get_full_optimizer_state

        partition = self._zero.single_partition_of_fp32_groups[0]
        state = self._zero.optimizer.state[partition]
        return {
            kind: value if value.ndim == 0 else safe_get_full_optimizer_state(parameter, kind)
            for kind, value in state.items()
        }

    def _load_partitions(self, saved: OptimizerState) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        first = next(iter(saved.values()))
        for partition in self._zero.single_partition_of_fp32_groups:
            self._zero.optimizer.state[partition] = {
                kind: value if value.ndim == 0 else torch.zeros_like(partition)
                for kind, value in first.items()
            }
        # Otherwise done after the first step: without it a parameter does not find its state.
        self._zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.trained.items():
            for kind, value in saved[name].items():
                if value.ndim:
                    whole = value.to(parameter.device)
                    safe_set_full_optimizer_state(parameter, whole, kind)

    @property
    def _zero(self) -> Any:
        return self.optimizer.optimizer


def _shard(student: Student, agreed: Mapping[str, nn.Parameter], device: torch.device) -> None:
    """Shard a student in place: a unit for each head and each layer, and one for the rest.

    Parameters to be `agreed` on are the first process's: a closed form is solved by every process,
    and shards must come from one of the solutions.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():  # one process, told to shard
        raise StudentError("FSDP needs a launcher: accelerate launch --config_file …/fsdp.yaml")
    for parameter in agreed.values():
        dist.broadcast(parameter.data, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = () if isinstance(student.text, Unloaded) else body_layers(student.text)
    # Weights travel in fp32, and autocast rounds them as it does elsewhere: sent in bf16, those of
    # norms and embeddings would be rounded too, and two engines would train two students.
    for unit in (*student.heads.values(), *layers, student):
        fully_shard(unit, mesh=mesh)


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return whole
    # Every process has read the whole: each cuts its own part, nothing is sent.
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
