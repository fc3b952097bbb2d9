"""The last section: what ran, on what, from which teachers, under which licences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from student.report.figures import Section
from student.report.markup import Content, Html, joined, table, tag, words
from student.report.records import Report, Run, Stage
from student.stages import STAGES


def section(report: Report) -> Section:
    """Teachers and licences, the settings of each stage, identities and versions."""
    parts: list[Content] = []
    for run in report.runs:
        parts += [
            tag("h3", words(run.name)) if len(report.runs) > 1 else None,
            _facts(run),
            _teachers(run),
            tag("p", "What each stage ran with. ", tag("strong", "Emphasised"), " is what differs "
                "from the paper's values.", class_="lead"),
            *(_settings(stage) for stage in run.stages if stage.finished),
        ]  # fmt: skip
    for sweep in report.sweeps:
        identity = tag("code", words(sweep.cache or "unknown"))
        name = words(sweep.sweep or sweep.path.name)
        parts.append(tag("p", "Sweep ", name, ": all arms from the cache ", identity, "."))
    return Section("provenance", "Where it comes from", "Provenance", joined(parts))


def _facts(run: Run) -> Html:
    record = run.last.record
    student: Mapping[str, Any] = record.get("student", {})
    versions: Mapping[str, Any] = record.get("versions", {})
    layers = student.get("layers")
    kept = "all layers" if layers is None else f"layers {', '.join(map(str, layers))}"
    facts: list[tuple[str, Content]] = [
        ("run", tag("code", words(str(run.path)))),
        ("cache", tag("code", words(str(record.get("cache", "unknown"))))),
        ("student", joined(["begins as ", tag("code", words(str(student.get("init", "unknown")))),
                            f", {kept}, at most {student.get('max_tokens', '?')} tokens"])),
        ("seed", str(record.get("seed", "unknown"))),
        ("images", tag("code", words(str(record["images"]))) if "images" in record else None),
        ("versions", words(", ".join(f"{name} {each}" for name, each in versions.items()))),
    ]  # fmt: skip
    rows = [
        part
        for name, value in facts
        if value is not None
        for part in (tag("dt", name), tag("dd", value))
    ]
    return tag("dl", *rows, class_="facts")


def _teachers(run: Run) -> Html:
    rows = [
        [
            words(str(block.get("teacher", ""))),
            block.get("width"),
            words(str(block.get("repository") or "")),
            tag("code", words(str(block.get("revision") or block.get("fingerprint") or "")[:16])),
            words(str(block.get("licence") or "unknown")),
        ]
        for block in run.last.record.get("blocks", [])
    ]
    blocks = table(
        "Teachers and their licences",
        ["teacher", "width", "model", "revision or fingerprint", "licence"],
        [(None, rows)],
        wordy=[2, 3, 4],
    )
    note = (
        "The teachers' licences, and the initialisation's, may bind what the student is used for."
    )
    return joined([blocks, tag("p", note, class_="lead")])


def _settings(stage: Stage) -> Html:
    """A stage's fields; those that are not the table's stand out."""
    settings: Mapping[str, Any] = stage.record.get("stage", {})
    usual = STAGES[stage.number].outcome() if stage.number in STAGES else {}
    rows = []
    for name, value in settings.items():
        if name == "heads":
            rows += _heads(value, usual.get("heads", {}))
        else:
            rows.append([name, _value(value, name in usual and value == usual[name])])
    summary = joined([f"Stage {stage.number}: ", words(str(settings.get("purpose", "")))])
    fields = table(
        f"Settings of stage {stage.number}", ["field", "value"], [(None, rows)], wordy=[1]
    )
    return tag("details", tag("summary", summary), fields)


def _heads(heads: Mapping[str, Any], usual: Mapping[str, Any]) -> list[list[Content]]:
    rows: list[list[Content]] = []
    for head, weights in heads.items():
        own = usual.get(head, {})
        # What counts is told: losses that are computed, and what was changed.
        told = {
            key: value for key, value in weights.items() if value != own.get(key) or own.get(key)
        }
        rows += [
            [f"heads.{head}.{key}", _value(value, value == own.get(key))]
            for key, value in told.items()
        ]
    return rows


def _value(value: Any, usual: bool) -> Content:
    code = tag("code", words(json.dumps(value, ensure_ascii=False)))
    return code if usual else tag("strong", code)
