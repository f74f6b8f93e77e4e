"""Every example in a docstring of the public API, run where it says: in a folder with photographs."""

from __future__ import annotations

import doctest
import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import idc_ray
from idc_ray.photographs import photographs
from tests.api.test_unchanged import changes, process

DOCS = Path(__file__).resolve().parents[2] / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

#: What holds public names of its own, or is no function or class.
WITHOUT = {"__version__", "data", "data.TILES"}


#: Whose examples draw from torch's random numbers: a DataLoader does, and fresh weights are drawn.
DRAWS = {"CondensedDataset", "create_model"}


def absolute(code: str, folder: Path) -> str:
    return re.sub(r'"(?=(photos|out|tiles)/)', f'"{folder}/', code)


def names() -> list[str]:
    every = [*idc_ray.__all__, *(f"data.{name}" for name in idc_ray.data.__all__)]
    return [name for name in every if name not in WITHOUT]


def examples(value: Any) -> list[doctest.DocTest]:
    module = inspect.getmodule(value)
    found = doctest.DocTestFinder(recurse=False).find(value, module=module, globs={})
    return [test for test in found if test.examples]


@pytest.fixture(scope="module")
def folder(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples find: two photographs, a set condensed from them, a benchmark set, and a space to search."""
    import mlflow  # noqa: F401  what imports do to a process is not a call's
    import ray.train
    import ray.tune  # noqa: F401

    root = tmp_path_factory.mktemp("examples")
    (root / "photos").mkdir()
    (root / "benchmarks" / "Set2" / "HR").mkdir(parents=True)
    for path in photographs():
        if path.name in ("chelsea.png", "coffee.png"):
            (root / "photos" / path.name).write_bytes(path.read_bytes())
            with Image.open(path) as image:
                image.crop((100, 100, 164, 164)).save(root / "benchmarks" / "Set2" / "HR" / path.name)
    (root / "space.yaml").write_text("parameters: {method: [random, sobel]}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        idc_ray.condense("photos/", "out/", scale=2, ratio=0.1, mlflow={"enabled": False}, actors={"max_size": 1})
    return root


@pytest.fixture
def callers_torch() -> Iterator[None]:
    """Settings that no worker has, so that one that a call leaves behind is seen."""
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    torch.manual_seed(5)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


@pytest.mark.parametrize("name", names())
def test_an_example_has_its_documented_result_and_no_side_effects(
    name: str,
    folder: Path,
    ray_cluster: Any,
    callers_torch: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Catches an example that has become wrong, a public name without one, a call that prints, one that changes torch,
    logging, signals, the environment or other state of its process, and one that ends its caller's cluster."""
    monkeypatch.chdir(folder)
    tests = examples(operator.attrgetter(name)(idc_ray))
    assert tests, f"idc_ray.{name} has no example"
    before, address = process(), ray_cluster.get_runtime_context().gcs_address
    del before["random"]  # threads of Ray draw from it at any time; tests/api/test_unchanged.py compares it
    if name in DRAWS:
        del before["torch: random"]
    capfd.readouterr()
    for test in tests:
        for example in test.examples:  # the cluster of the tests works in another folder
            example.source = absolute(example.source, folder)
        messages: list[str] = []
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=messages.append, clear_globs=False)
        assert not messages, "".join(messages)
    assert changes(before) == []
    assert name.startswith("data.") or capfd.readouterr() == ("", "")  # Ray Data shows its own progress
    assert ray_cluster.get_runtime_context().gcs_address == address


def test_the_page_of_the_api_runs_and_names_it_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a page that shows what no longer works, and a public name that it and the reference leave out."""
    monkeypatch.chdir(folder)
    page, reference = ((DOCS / name).read_text(encoding="utf-8") for name in ("api.md", "api_reference.md"))
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    found: dict[str, Any] = {}
    exec(compile(absolute(code, folder), "docs/api.md", "exec"), found)
    assert found["batch"]["hr"].shape == (2, 96, 96, 3) and found["large"].shape == (160, 240, 3)
    run = found["run"]
    assert f"# {run.num_tiles}, {run.ratio:.3g}, " in page
    public = {*idc_ray.__all__, *idc_ray.data.__all__} - {"__version__", "data", "errors"}
    assert {name for name in public if not re.search(rf"\b{name}\b", page + reference)} == set()
