"""Every example in a docstring of the public API, run where it says: in a folder with photographs."""

from __future__ import annotations

import doctest
import inspect
import operator
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import idc_ray
from idc_ray.photographs import photographs

DOCS = Path(__file__).resolve().parents[2] / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

#: What holds public names of its own, or is no function or class.
WITHOUT = {"__version__", "data", "data.TILES"}


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


@pytest.mark.parametrize("name", names())
def test_an_example_does_what_it_says(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an example that has become wrong, and a public name without one."""
    monkeypatch.chdir(folder)
    tests = examples(operator.attrgetter(name)(idc_ray))
    assert tests, f"idc_ray.{name} has no example"
    for test in tests:
        for example in test.examples:  # the cluster of the tests works in another folder
            example.source = absolute(example.source, folder)
        messages: list[str] = []
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=messages.append, clear_globs=False)
        assert not messages, "".join(messages)


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
