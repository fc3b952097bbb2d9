"""A student as a sentence-transformers folder, written as the library's documentation lays it out.

    model.safetensors config.json tokenizer.json …   the text body
    1_Pooling/                                        the masked mean
    2_Dense_fc1/ 2_Dense_fc2/ …                       every trained head; modules.json names one
    3_Normalize/                                      to length 1
    modules.json config_sentence_transformers.json    which of them are used; the prompt

The library is not asked to write it: each of its releases names its modules otherwise, and releases
before that one cannot load them. The names written here load in all releases since the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from student.body import FIRST_TRANSFORMERS, is_decoder
from student.durable import refuse_full, whole_folder
from student.export.card import model_card
from student.export.names import dense_folder
from student.export.past import Past
from student.model import Student
from student.spec import POOLED
from student.stages import head_of, width_of
from student.trained import Heads

_PACKAGE = "sentence_transformers.models"


def export(
    student: Student,
    out: Path,
    *,
    head: str,
    record: Mapping[str, Any],
    past: Past | None = None,
    onnx: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write body, mean pooling, every trained head as a Dense layer, and normalisation.

    `head` is the one that is used unless another is chosen, as `Heads.choose` reads it. With
    `pooled` the folder has the body and the pooling alone, and its vectors are raw.

    `record` is the stage's `run.json`, from which the card says whose vectors it was trained on,
    and `past` what else the card tells. With `onnx` the folder also has the graph that
    `student.export.onnx_model` writes; `say` is told when that begins, and how equal it is.

    Raises:
        StudentError: no such head, an untrained one, `out` exists and is not an empty folder, or
            the graph cannot be made.
        StageError: more columns than the head has.
    """
    heads = Heads.of(student.head_widths, record["trained_heads"])
    chosen = heads.choose(head)
    refuse_full(out)
    entries = [] if chosen == POOLED else list(dict.fromkeys([chosen, *heads.trained]))
    if onnx:
        from student.export.onnx_model import require

        require(chosen)
    with whole_folder(out) as folder:
        student.text.save_pretrained(folder)  # type: ignore[operator]
        student.tokenizer.save(folder)
        _write_settings(student, folder)
        for entry in entries:
            _write_dense(student, entry, folder / dense_folder(entry))
        _write_modules(folder, entries[:1])
        if onnx:
            from student.export.onnx_model import write

            say("ONNX: tracing the student, and computing the graph beside it")
            say(write(student, folder / "onnx", entries))
        card = model_card(student, entries, record, past or Past(), onnx=onnx)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _write_settings(student: Student, folder: Path) -> None:
    prompt = student.spec.prompt
    settings: dict[str, Any] = {
        # By name too: `encode_query` and `encode_document` do not fall back to the default.
        "prompts": dict.fromkeys(("default", "query", "document"), prompt) if prompt else {},
        "default_prompt_name": "default" if prompt else None,
        "similarity_fn_name": "cosine",
    }
    if is_decoder(student.text):
        # Releases that know this field refuse to load the folder under an older transformers.
        reason = "older ones let the body attend to the left alone"
        wanted = {"specifier": f">={FIRST_TRANSFORMERS}", "reason": reason}
        settings["requirements"] = {"transformers": wanted}
    _write(folder / "config_sentence_transformers.json", settings)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": student.spec.max_tokens, "do_lower_case": False},
    )
    pooling = {"word_embedding_dimension": student.hidden, "pooling_mode_mean_tokens": True}
    _write(folder / "1_Pooling" / "config.json", pooling)


def _write_dense(student: Student, entry: str, folder: Path) -> None:
    width = width_of(entry, student.head_widths)
    linear: Any = student.heads[head_of(entry)[0]]
    _write(
        folder / "config.json",
        {
            "in_features": student.hidden,
            "out_features": width,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    tensors = {f"linear.{n}": t[:width].cpu().contiguous() for n, t in linear.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_modules(folder: Path, used: Sequence[str]) -> None:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    for entry in used:
        # Its settings are the defaults: a folder without any file would be lost on the way.
        _write(folder / "3_Normalize" / "config.json", {})
        modules += [("Dense", dense_folder(entry)), ("Normalize", "3_Normalize")]
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"{_PACKAGE}.{kind}"}
        for place, (kind, path) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
