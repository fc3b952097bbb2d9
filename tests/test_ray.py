"""Builds on a real Ray of this machine alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import corpus, lsa, write_corpus

from teacher_cache.build import Options, build
from teacher_cache.format import CacheError
from teacher_cache.ray_engine import Cluster


@pytest.mark.slow
def test_build_whose_actors_are_killed_is_the_build_of_one_process(tmp_path: Path) -> None:
    script = Path(__file__).with_name("ray_building.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["shards"] == 61
    assert found["killed"] >= 2
    assert found["listening"] == ["loopback"]
    assert found["differs"] == []
    assert found["no_gpu"].startswith("the cluster has no GPU: start a node that has one")
    # An error of an actor arrives as the line that it is.
    assert found["bad_text"].startswith("teacher lsa: the vector of text ")


@pytest.mark.parametrize(
    ("missing", "cluster", "message"),
    [
        (True, Cluster(), r"the engine ray needs the package ray: pip install .*\[ray\]"),
        (False, Cluster("127.0.0.1:9"), r"no Ray cluster answers at '127\.0\.0\.1:9': "),
    ],
)
def test_cluster_that_is_not_there_is_named(
    missing: bool,
    cluster: Cluster,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "ray", None)
    write_corpus(tmp_path)
    with pytest.raises(CacheError, match=message):
        build(tmp_path / "c", corpus(tmp_path), [lsa()], options=Options(), engine=cluster)
