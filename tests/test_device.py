"""A device that is not there is refused before anything is planned, read or loaded."""

from pathlib import Path

import pytest
import torch
from jobs import contents, corpus, lsa, write_corpus

from teacher_cache.build import Options, build
from teacher_cache.encoders.batching import token_budget_of
from teacher_cache.format import CacheError
from teacher_cache.ray_engine import Cluster
from teacher_cache.reader import CacheReader
from teacher_cache.repair import repair
from teacher_cache.teachers import TeacherError

NONE_HERE = ["gpu", "cuda:99", "cpu:x", "meta"]


@pytest.mark.parametrize("device", NONE_HERE)
def test_build_asks_for_its_device_before_it_plans(device: str, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    message = f"the device '{device}' cannot be used: .*; expected one of cpu.*: give it with --dev"
    with pytest.raises(TeacherError, match=message):
        build(tmp_path / "cache", corpus(tmp_path), [lsa()], options=Options(device=device))
    assert not (tmp_path / "cache").exists()


def test_repair_asks_for_its_device_before_it_reads(cache: CacheReader) -> None:
    before = contents(cache.path)
    phases: list[str] = []

    def phase(what: str, _: int | None) -> None:
        phases.append(what)

    with pytest.raises(TeacherError, match="the device 'gpu' cannot be used"):
        repair(cache.path, [lsa()], options=Options(device="gpu"), phase=phase)  # type: ignore[arg-type]
    assert phases == []
    assert contents(cache.path) == before


def test_cluster_gives_a_worker_its_gpu_itself() -> None:
    with pytest.raises(CacheError, match="--device is cpu or cuda, found 'cuda:1'"):
        Cluster(device="cuda:1")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "xpu"])
def test_every_kind_of_device_has_a_token_budget(kind: str) -> None:
    device = torch.device(kind)
    assert token_budget_of(device, None) >= 2048
    assert token_budget_of(device, 64) == 64
