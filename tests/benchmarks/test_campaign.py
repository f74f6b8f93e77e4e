from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import campaign
from benchmarks.arms.queue import read_queue
from benchmarks.arms.results import append_line, collect, format_table, read_lines
from benchmarks.arms.state import PIECE_BYTES, Saved, StateFiles
from benchmarks.arms.students import Student
from benchmarks.common import ROOT, write_pieces
from idc_ray.errors import BadRequest
from idc_ray.training.state import SavedState

QUEUE = """
scale: 2
validation: 0.3
max_validation_images: 1
train: {model: edsr_small, model_arguments: {channels: 4, blocks: 1}, iterations: 60, batch_size: 2, patch_size: 16}
condense: {tile_size: 16}
arms:
  whole_real: {labels: real}
  random_0.1: {method: random, ratio: 0.1}
  random_online: {method: random, ratio: 0.1, labels: online, train: {augment.mixup: 0.5}}
queue:
  - {seed: 0, arms: [whole_real, random_0.1, random_online]}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pieces(None, tmp_path_factory.mktemp("campaign") / "images", 6)


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(QUEUE)
    return file


def options(queue: Path, images: Path, folder: Path, *more: str) -> list[str]:
    return [
        "--queue", str(queue), "--images", str(images), "--state", str(folder / "state"), "--device", "cpu",
        "--results", str(folder / "RESULTS.jsonl"), "--processes", "1", "--minutes", "5", *more,
    ]  # fmt: skip


def run(arguments: Sequence[str], stop: object = None) -> bool:
    return campaign.run(campaign.parser().parse_args(arguments), time.monotonic(), stop)  # type: ignore[arg-type]


def scores(folder: Path) -> dict[str, object]:
    lines = read_lines(folder / "state" / campaign.LINES)
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["arm"]: line["scores"] for line in lines}


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Scores of all arms, trained one after another in one call."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = folder / "small.yaml"
    file.write_text(QUEUE)
    assert run(options(file, images, folder, "--parallel", "1"))
    return scores(folder)


def test_two_tiny_arms_end_after_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """The check that users run on a CPU: python benchmarks/campaign.py --quick"""
    assert campaign.quick() == 0
    assert "all arms finished in 2 calls" in capsys.readouterr().out


def test_arms_that_share_the_device_and_stop_score_as_alone(
    queue: Path, images: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """Catches a state that loses anything, and arms that disturb each other. The third call has nothing to do."""

    def in_the_middle(students: Sequence[Student]) -> bool:
        return any(student.trainer.step == 37 for student in students)

    assert not run(options(queue, images, tmp_path), in_the_middle)
    saved = StateFiles(tmp_path / "state").read()
    assert {each.state.step for each in saved.values()} <= {36, 37}
    assert run(options(queue, images, tmp_path))
    assert scores(tmp_path) == undisturbed
    assert StateFiles(tmp_path / "state").read() == {}
    before = (tmp_path / "state" / campaign.LINES).read_bytes()
    assert run(options(queue, images, tmp_path))
    assert (tmp_path / "state" / campaign.LINES).read_bytes() == before


def test_killed_again_and_again_it_ends_with_the_same_scores(
    queue: Path, images: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "campaign.py"), *options(queue, images, tmp_path)]
    command += ["--save-every", "0.2"]
    index = tmp_path / "state" / "state.json"
    helpers: set[str] = set()
    for _ in range(2):  # killed as soon as a new state is there
        known = index.read_bytes() if index.exists() else b""
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not index.exists() or index.read_bytes() == known):
            time.sleep(0.02)
        helpers.update(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert helpers  # the processes that condense
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in helpers):
        assert time.monotonic() < deadline, "processes are left behind"
        time.sleep(0.05)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert scores(tmp_path) == undisturbed


def test_the_plan_names_arms_and_trains_nothing(
    queue: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert campaign.main([*options(queue, images, tmp_path, "--dry-run", "--rate", "10")]) == 0
    out = capsys.readouterr().out
    assert "3 arms, 3 to train" in out
    assert out.count("60 steps        6 s  call 1") == 3
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arms: [whole_real,", "arms: [hole_real,", "'hole_real'; did you mean whole_real"),
        ("method: random, ratio: 0.1}", "method: random}", "arms.random_0.1: method is random and ratio None"),
        ("iterations: 60", "iteratoins: 60", "unknown setting 'iteratoins'; did you mean 'iterations'"),
        ("labels: real", "label: real", "arms.whole_real: unknown setting 'label'"),
        ("patch_size: 16", "patch_size: 20", "patch_size is 20, larger than tile_size, 16"),
        ("method: random, ratio: 0.1}", "method: rndom, ratio: 0.1}", "arms.random_0.1: setting 'method' is 'rndom'"),
        ("[whole_real, random_0.1,", "[whole_real, whole_real,", "has whole_real, seed 0 twice"),
        ("iterations: 60", "seed: 1, iterations: 60", "seed cannot be set here"),
    ],
)
def test_a_queue_with_a_mistake_is_refused_by_name(queue: Path, old: str, new: str, message: str) -> None:
    assert old in QUEUE
    queue.write_text(QUEUE.replace(old, new, 1))
    with pytest.raises(BadRequest) as caught:
        read_queue(queue)
    assert message in str(caught.value)


def test_the_queues_that_are_shipped_are_valid() -> None:
    names = sorted(path.stem for path in (ROOT / "campaigns").glob("*.yaml"))
    cpu = ["cpu_allocation_x2", "cpu_medium_x2", "cpu_x2"]
    assert names == [*cpu, "proof_transformers", "proof_x2", "proof_x4", "quick"]
    arms = {name: read_queue(ROOT / "campaigns" / f"{name}.yaml").arms for name in names}
    first = ["whole_real", "whole_teacher", "idc_0.1", "random_0.1", "sobel_0.1", "idc_0.02", "sobel_0.02"]
    for name in ("proof_x2", "proof_x4"):
        assert [arm.name for arm in arms[name][:8]] == [*first, "random_0.1_real"]
        online = {(arm.settings.method, arm.settings.ratio) for arm in arms[name] if arm.train.labels == "online"}
        assert online == {(method, ratio) for method in ("idc", "sobel") for ratio in (0.1, 0.02, 0.005)}
        assert all(arm.train.iterations >= 40_000 for arm in arms[name])


def saved_state(size: int, step: int = 1) -> Saved:
    return Saved(SavedState(step, {"weights": torch.randn(size)}), {"seconds": 1.5})


def test_states_come_back_as_they_were_in_few_small_files(tmp_path: Path) -> None:
    files = StateFiles(tmp_path / "state")
    states = {"one": saved_state(5_000_000), "two": saved_state(7), "three": saved_state(3_000_000, 9)}
    files.write(states)
    names = [path.name for path in (tmp_path / "state").iterdir()]
    assert len(names) == 3
    assert max(path.stat().st_size for path in (tmp_path / "state").iterdir()) <= PIECE_BYTES < 16 * 2**20
    back = files.read()
    assert {key: (saved.state.step, saved.notes) for key, saved in back.items()} == {
        key: (saved.state.step, saved.notes) for key, saved in states.items()
    }
    assert all(torch.equal(back[key].state.tensors["weights"], states[key].state.tensors["weights"]) for key in states)
    files.write({"two": states["two"]})
    assert list(files.read()) == ["two"]
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_more_state_than_may_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"lower --parallel \(2\)"):
        StateFiles(tmp_path / "state").write({"one": saved_state(13_000_000), "two": saved_state(13_000_000)})
    assert not (tmp_path / "state").exists()


def test_a_replacement_that_was_killed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mixture of old and new files: killed at each rename, what is read is all old or all new."""
    old, new = {"a": saved_state(5_000_000, 1)}, {"a": saved_state(5_000_000, 2), "b": saved_state(3, 2)}
    replace = campaign.os.replace
    for kill_at in range(3):
        folder = tmp_path / str(kill_at)
        StateFiles(folder).write(old)
        done: list[object] = []

        def killed(source: object, target: object, kill_at: int = kill_at, done: list[object] = done) -> None:
            if len(done) == kill_at:
                raise KeyboardInterrupt
            done.append(source)
            replace(source, target)  # type: ignore[arg-type]

        monkeypatch.setattr("benchmarks.arms.state.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            StateFiles(folder).write(new)
        monkeypatch.setattr("benchmarks.arms.state.os.replace", replace)
        back = StateFiles(folder).read()
        assert {key: saved.state.step for key, saved in back.items()} == {"a": 2, "b": 2}
        assert not folder.with_name(f"{folder.name}.new").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index"])
def test_a_damaged_state_is_refused_with_the_fix(tmp_path: Path, damage: str) -> None:
    files = StateFiles(tmp_path / "state")
    files.write({"one": saved_state(1000)})
    piece, index = tmp_path / "state" / "state-0.bin", tmp_path / "state" / "state.json"
    data = bytearray(piece.read_bytes())
    if damage == "flip":
        data[2000] ^= 1
        piece.write_bytes(data)
    elif damage == "cut":
        piece.write_bytes(data[:-5])
    elif damage == "gone":
        piece.unlink()
    else:
        index.write_text(index.read_text()[:40])
    with pytest.raises(BadRequest, match=r"is damaged: .*or delete state.json"):
        files.read()


def line(arm: str, seed: int, psnr: float, **more: object) -> dict[str, object]:
    scores = {"Set5": {"psnr": psnr, "ssim": 0.9, "images": {}}}
    facts = {"tiles": 3, "ratio": 0.1}
    return {
        "key": f"{arm}{seed}", "queue": "q", "arm": arm, "seed": seed, "steps": 9, "card": "C", "scores": scores,
        "set": facts, **more,
    }  # fmt: skip


def test_results_are_collected_once_and_a_torn_line_is_none(tmp_path: Path) -> None:
    source, target = tmp_path / "results.jsonl", tmp_path / "all" / "RESULTS.jsonl"
    append_line(source, line("a", 0, 30.0))
    source.write_bytes(source.read_bytes() + b'{"key": "torn')
    assert [each["arm"] for each in collect(source, target)] == ["a"]
    append_line(source, line("b", 0, 31.0))
    assert [each["arm"] for each in collect(source, target)] == ["b"]
    assert collect(source, target) == []
    assert [each["key"] for each in read_lines(target)] == ["a0", "b0"]
    target.write_text("no json\n" + target.read_text())
    with pytest.raises(BadRequest, match="line 1 is not a result"):
        read_lines(target)


def test_the_table_pairs_by_seed(tmp_path: Path) -> None:
    lines = [line("whole_real", 0, 30.0), line("whole_real", 1, 31.0), line("idc", 0, 30.2), line("idc", 1, 31.4)]
    table = format_table(json.loads(json.dumps(lines)), "whole_real")
    (row,) = [text for text in table.splitlines() if text.startswith("| idc")]
    assert "30.800 ± 0.849" in row
    assert "+0.300 [-0.971, +1.571]" in row  # 0.2 and 0.4: t(1) = 12.706 times 0.1
    assert "| 3 | 0.1000 | 9 | C |" in row


def test_a_campaign_needs_few_packages() -> None:
    """Catches an import of what a GPU machine without Ray does not have, found out in its first paid minute."""
    missing = ["ray", "mlflow", "optuna", "matplotlib", "sklearn", "skimage", "tqdm", "scipy", "datasets"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "import benchmarks.campaign, benchmarks.gpu, benchmarks.arms.students, idc_ray.condensation.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
