"""An arm of sentence-transformers: its trainer and losses, as its distillation example uses them.

The example keeps some layers of the teacher and trains them by MSELoss on the teacher's vectors,
which stand in a column of the data set: batches of 64, learning rate 1e-4, a tenth of the steps
warm-up, else the library's defaults (linear decay, no weight decay, the model's own dropout, each
batch padded to its longest text). All of this is left as it is but the learning rate, which is
tuned, the number of steps, and bf16, which all arms have where the CPU has it. With it attention is
the library's `eager`: with dropout on a CPU that is the fastest.
Source: examples/sentence_transformer/training/distillation of the library.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from student.encoding import FloatArray, unit
from teacher_cache.reader import CacheReader
from yardstick.arms import EXAMPLE_BATCH
from yardstick.budget import Cost
from yardstick.stopwatch import Seconds, Stopwatch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WARMUP = 0.1


def distil(
    loss: str | None,
    reader: CacheReader,
    init: Path,
    out: Path,
    *,
    layers: Sequence[int],
    max_tokens: int,
    rate: float,
    steps: int,
    seed: int,
    bf16: bool,
) -> tuple[Callable[[Sequence[str]], dict[str, FloatArray]], Seconds, dict[str, dict[str, Cost]]]:
    """Train a student; give its encoder, the seconds of training and what a step costs.

    Without a loss the student stays as it is.
    """
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(seed)
    attention = {"attn_implementation": "eager"} if bf16 else None
    model = SentenceTransformer(str(init), device="cpu", model_kwargs=attention)
    model.max_seq_length = max_tokens
    body: Any = model[0].auto_model
    body.encoder.layer = torch.nn.ModuleList(body.encoder.layer[place] for place in layers)
    body.config.num_hidden_layers = len(layers)
    watch = Stopwatch()
    if loss is not None:
        _train(model, loss, reader, out, watch, rate, steps, seed, bf16)
    model.eval()

    def vectors(texts: Sequence[str]) -> dict[str, FloatArray]:
        found = model.encode(list(texts), batch_size=EXAMPLE_BATCH, show_progress_bar=False)
        return {"fc1": unit(np.asarray(found))}

    if loss is None:
        return vectors, Seconds(), {}
    return vectors, watch.taken, {"train": watch.costs}


class _Tell(TrainerCallback):
    """Tells of the steps, from before the first one."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch.step(state.global_step)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch.step(state.global_step)


def _train(
    model: SentenceTransformer,
    loss: str,
    reader: CacheReader,
    out: Path,
    watch: Stopwatch,
    rate: float,
    steps: int,
    seed: int,
    bf16: bool,
) -> None:
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    disable_progress_bars()
    shutil.rmtree(out, ignore_errors=True)
    rows = reader.train_rows
    data = Dataset.from_dict(
        {
            "sentence": reader.texts(rows),
            "label": list(reader.vectors(rows).astype(np.float32)),
        }
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=EXAMPLE_BATCH,
        learning_rate=rate,
        warmup_steps=WARMUP,
        seed=seed,
        use_cpu=True,
        bf16=bf16,
        # It is to train and nothing else.
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=getattr(losses, loss)(model),
        callbacks=[_Tell(watch)],
    )
    trainer.train()
