"""Markdown links without building the site, what docs/architecture.md says of the code, and the version."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import idc_ray
from tests.test_import_rule import PACKAGE, imported, package_of

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def pages() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, without punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def dead_links(page: Path) -> Iterator[str]:
    # Code may hold what looks like a link; a link's text may be code.
    for target in LINK.findall(CODE.sub("x", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (fragment and fragment not in anchors(to)):
            yield f"{page.relative_to(ROOT)}: {target}"


def test_no_relative_link_is_dead() -> None:
    """Catches a page, a heading or a file that was renamed while a link to it was not."""
    assert pages()
    assert not [dead for page in pages() for dead in dead_links(page)]


def test_a_dead_link_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pattern that matches no link, or every heading."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A head, `code`\n[`a`](page.md#a-head-code) [b](page.md#other) [c](gone.md) `[d](code)` [e](https://x.y)"
    )
    assert list(dead_links(page)) == ["page.md: page.md#other", "page.md: gone.md"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_reachable_in_the_site(page: Path) -> None:
    """Catches a new page that is missing in the table of contents; Sphinx also reports it."""
    if page.name == "index.md" or page.name.startswith("api"):  # which the table of contents has by a pattern
        return
    contents = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert re.search(rf"^{page.stem}$", contents, re.MULTILINE)


def folders_imported(folder: Path) -> set[str]:
    """The other folders of the package that files of one import."""
    modules = (
        module
        for path in folder.rglob("*.py")
        for module in imported(path.read_text(encoding="utf-8"), package_of(path))
        if module.startswith("idc_ray.")
    )
    return {name for module in modules if (PACKAGE / (name := module.split(".")[1])).is_dir()} - {folder.name}


def test_architecture_lists_every_folder_and_what_it_imports() -> None:
    """Catches an import against the layers, and a folder that the page does not know."""
    folders = {path.parent for path in PACKAGE.glob("*/__init__.py")}
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)/` \| .* \| (.*) \|$", text, re.MULTILINE))
    assert {folder.name for folder in folders} <= rows.keys()
    for folder in folders:
        if rows[folder.name] == "everything":
            continue
        found, said = folders_imported(folder), set(re.findall(r"`(\w+)`", rows[folder.name]))
        if rows[folder.name].startswith("everything except"):
            assert not found & said, folder.name
        else:
            assert found <= said, folder.name


def test_the_way_of_an_image_names_functions_that_exist() -> None:
    """Catches a function of the picture that was renamed or moved."""
    steps = re.findall(r"(\w+) · ([\w/]+\.py)", (ROOT / "docs/architecture_image.svg").read_text(encoding="utf-8"))
    assert len(steps) > 10
    for name, file in steps:
        assert re.search(rf"^(def|class) {name}\b", (PACKAGE / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_version_is_the_same_everywhere() -> None:
    """Catches a release that forgets one of the three places."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == idc_ray.__version__ == citation["version"]
