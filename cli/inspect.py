"""`jasper-cache inspect`: what a cache holds, as tables, as JSON and as a picture."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import bar, print_table, size

_BARS = " ▁▂▃▄▅▆▇█"


def inspect(
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
    png: Annotated[
        Path | None, typer.Option(help="Also draw a picture of it into this file.")
    ] = None,
) -> None:
    """Show what a cache holds: teachers, texts, lengths, norms, sizes, and where teachers agree.

    Counts of texts are exact. Lengths and norms are those of up to 64 shards, similarities and
    agreement those of up to 2,000 rows and all their pairs: a fixed sample, whose size is shown.

    Example: `jasper-cache inspect cache/ --png cache.png`
    """
    from teacher_cache.format import CacheError
    from teacher_cache.reader import CacheReader
    from teacher_cache.summary import summarize
    from teacher_cache.survey import SHARDS, survey

    reader = CacheReader(cache)
    if png is not None and not png.parent.is_dir():
        raise CacheError(f"--png {png}: there is no folder {png.parent}")
    shards = min(SHARDS, len(reader.manifest.shards))
    # Bars for what takes long alone: a small cache is read before one is seen.
    with bar("reading", shards, "shards") if shards == SHARDS else nullcontext() as update:
        found = survey(reader, lambda count: update(count, "") if update else None)
    summary = summarize(found)
    if png is not None:
        from teacher_cache.picture import draw

        draw(found, summary, png)
        typer.echo(f"drawn: {png}", err=True)
    if as_json:
        typer.echo(json.dumps(summary, indent=1, ensure_ascii=False))
    else:
        _print(summary)


def _print(summary: dict[str, Any]) -> None:
    sample = summary["sample"]
    typer.echo(
        f"{summary['path']}: {summary['rows']:,} rows × {summary['width']} "
        f"({size(summary['bytes'])} in {summary['shards']} shards), "
        f"{summary['held_out_rows']:,} held out\n"
        f"identity {summary['identity']}, format version {summary['format_version']}"
    )
    _print_teachers(summary["blocks"])
    if summary["pooled"] is not None:
        kept = summary["pooled"]
        typer.echo(f"pooled states of {kept['teacher']} are kept, {kept['width']} wide")
    _print_texts(summary["counts"])
    of = "" if sample["rows"] == summary["rows"] else f", of {sample['shards']} shards"
    _print_lengths(summary, f"{sample['rows']:,} rows{of}")
    _print_agreement(summary, f"all pairs of {sample['pair_rows']:,} rows")
    _print_sizes(summary)


def _print_teachers(blocks: list[dict[str, Any]]) -> None:
    print_table(
        "Teachers",
        ("teacher", "columns", "encoder", "pooling", "max tokens", "dtype", "licence"),
        [
            (
                block["teacher"],
                f"{block['offset']}-{block['offset'] + block['width'] - 1}",
                block["encoder"],
                block["pooling"],
                str(block["max_tokens"] or "-"),
                block["dtype"],
                block["licence"],
            )
            for block in blocks
        ],
    )
    print_table(
        "Models",
        ("teacher", "model", "revision", "fingerprint"),
        [
            (b["teacher"], b["repository"], b["revision"] or "-", b["fingerprint"][:16])
            for b in blocks
        ],
    )
    prompts = [
        (block["teacher"], source, json.dumps(prompt, ensure_ascii=False))
        for block in blocks
        for source, prompt in block["prompts"].items()
        if prompt
    ]
    if prompts:
        print_table("Prompts", ("teacher", "source", "prompt"), prompts)


def _print_texts(counts: dict[str, Any]) -> None:
    names = ("kept", "held_out", "duplicates", "near_duplicates", "cut", "shuffled", "skipped")
    # A cache that another program wrote need not have counted all of it.
    sources = {name: Counter(found) for name, found in counts.items()}
    kept = sum(source["kept"] for source in sources.values())
    if not kept:
        typer.echo("how many texts each source gave was not recorded")
        return
    print_table(
        "Texts",
        ("source", "share", *(name.replace("_", " ") for name in names)),
        [
            (name, f"{source['kept'] / kept:.1%}", *(f"{source[key]:,}" for key in names))
            for name, source in sources.items()
        ],
    )


def _print_lengths(summary: dict[str, Any], sample: str) -> None:
    columns = ("min", "5 %", "median", "95 %", "max", "")
    lengths = [("characters", summary["characters"], "-")]
    for block in summary["blocks"]:
        name = f"tokens: {block['teacher']}"
        lengths.append((name, block["tokens"], f"{block['longest']:.1%}"))
    print_table(
        f"Lengths ({sample})",
        ("", *columns, "as long as the max"),
        [(name, *_spread(values, ",.0f"), longest) for name, values, longest in lengths],
    )
    print_table(
        f"Norms of the raw vectors ({sample})",
        ("teacher", *columns),
        [(block["teacher"], *_spread(block["norms"], ".4g")) for block in summary["blocks"]],
    )


def _print_agreement(summary: dict[str, Any], sample: str) -> None:
    similarities = {name: values for name, values in summary["similarities"].items() if values}
    if similarities:
        print_table(
            f"Similarities ({sample})",
            ("", "min", "5 %", "median", "95 %", "max", ""),
            [(name, *_spread(values, ".3f")) for name, values in similarities.items()],
        )
    if summary["agreement"]:
        print_table(
            f"Agreement ({sample})",
            ("teachers", "order (Spearman)", "common neighbours of 10"),
            [
                (
                    " · ".join(each["teachers"]),
                    f"{each['order']:.3f}",
                    f"{each['neighbours@10']:.3f}",
                )
                for each in summary["agreement"]
            ],
        )


def _print_sizes(summary: dict[str, Any]) -> None:
    print_table(
        "Sizes of the columns",
        ("column", "bytes a row", "in all"),
        [
            (name, f"{count:,.1f}", size(count * summary["rows"]))
            for name, count in summary["row_bytes"].items()
        ],
    )
    total = {"in all": sum(summary["disk"].values())}
    print_table(
        "On disk",
        ("part", "size"),
        [(part, size(count)) for part, count in (summary["disk"] | total).items()],
    )


def _spread(values: dict[str, Any], form: str) -> tuple[str, ...]:
    """Five numbers and a small histogram."""
    numbers = (values[name] for name in ("min", "low", "median", "high", "max"))
    return (*(format(number, form) for number in numbers), _sparkline(values["histogram"]))


def _sparkline(histogram: dict[str, Any]) -> str:
    counts = histogram["counts"]
    highest = max(counts)
    # Whatever is there shows, however little: rounding is up.
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] for count in counts)
