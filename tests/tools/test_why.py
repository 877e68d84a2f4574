"""``batchnorm why``: the same bits every time, findings that follow the numbers, and refusals before anything runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from why_numbers import rates, summary_of

from batchnorm.tools.cli import main
from batchnorm.tools.files import Refused
from batchnorm.tools.text.lines import cells
from batchnorm.tools.why import workers
from batchnorm.tools.why.catalogue import ENTRIES, NAMES, experiment
from batchnorm.tools.why.data import Data, load
from batchnorm.tools.why.workers import Task

Capture = pytest.CaptureFixture[str]
FAST = ["smoother-loss", "noise"]  # the two that a quick run does in a second or two


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a directory of its own and with the default width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


def listing() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


# What comes out


@pytest.mark.slow
def test_the_same_bits_on_a_second_run_and_for_any_number_of_jobs(capsys: Capture) -> None:
    threads = torch.get_num_threads()
    for jobs in ("1", "2"):
        assert main(["why", *FAST, "--quick", "--jobs", jobs, "--json", f"{jobs}.json", "--html", f"{jobs}.html"]) == 0
    assert torch.get_num_threads() == threads
    assert Path("1.json").read_bytes() == Path("2.json").read_bytes()
    assert Path("1.html").read_bytes() == Path("2.html").read_bytes()
    out = " ".join(capsys.readouterr().out.split())  # lines break anywhere
    assert "The command wrote 2.json and 2.html." in out
    assert "This was a quick run" in out
    assert listing() == ["1.html", "1.json", "2.html", "2.json"]


def test_a_run_uses_no_random_numbers_but_its_own() -> None:
    data = load("digits")
    setting = experiment("noise").plan(True).settings()[1]
    first = experiment("noise").run(setting, 0, data)
    before = torch.random.get_rng_state()
    torch.manual_seed(77)
    assert experiment("noise").run(setting, 0, data) == first
    assert experiment("noise").run(setting, 1, data) != first
    torch.random.set_rng_state(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_an_experiment_runs(name: str) -> None:
    """Two steps, or a few images, of each network: whole runs are slow tests."""
    settings = {(s.get("part"), s.get("net")): s for s in experiment(name).plan(True).settings()}
    for setting in settings.values():
        short = {key: few for key, few in {"steps": 2, "images": 64}.items() if key in setting}
        assert short or setting["part"] == "exact"
        assert experiment(name).run({**setting, **short}, 0, load("digits"))


def test_both_sides_begin_with_the_same_weights_and_see_the_same_batches() -> None:
    from batchnorm.tools.why.networks import batch_norm_2d, convolutional, group_norm, nothing
    from batchnorm.tools.why.training import batches

    models = [convolutional(between, 3, (8, 8)) for between in (batch_norm_2d, group_norm, nothing)]
    weights = [[m.weight for m in model if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)] for model in models]
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))
    one, two = ([b.tolist() for b in batches(10, 4, 5, seed)] for seed in (3, 4))
    assert one == [b.tolist() for b in batches(10, 4, 5, 3)]
    assert one != two
    assert len(set(one[0] + one[1])) == 8  # an epoch takes no image twice


def test_list_names_every_experiment_and_runs_nothing(capsys: Capture) -> None:
    assert main(["why", "--list"]) == 0
    out = capsys.readouterr().out
    for entry in ENTRIES:
        assert entry.name in out
        assert f"The claim is from {entry.paper.authors} ({entry.paper.year})" in " ".join(out.split())
        assert entry.paper.arxiv in out
    assert max(map(len, out.splitlines())) <= 80
    assert listing() == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from batchnorm.tools.cli import main; main(['why', '--help']); main(['why', '--list']); "
        "sys.exit(str([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1)
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80


# The mathematics of "scale"


@pytest.mark.parametrize("factor", [0.1, 3.0, 100.0])
def test_scaled_weights_leave_the_output_and_divide_the_gradient(factor: float) -> None:
    data = load("digits")
    setting = {"hidden": [100, 100, 100], "batch": 60, "part": "exact", "net": "with", "eps": 1e-12, "factor": factor}
    numbers = experiment("scale").run(setting, 0, data)
    assert numbers["output_change"] < 1e-6
    assert numbers["gradient_error"] < 1e-6
    assert numbers["gradient_ratio"] == pytest.approx(1 / factor, rel=1e-6)
    without = experiment("scale").run({**setting, "net": "without", "eps": None}, 0, data)
    assert without["output_change"] > 0.1


def test_a_mask_makes_padding_invisible() -> None:
    """With a mask, batches that are padded train the network that those without padding train."""
    data, module = load("digits"), experiment("padding")
    settings = [s for s in module.plan(True).settings() if s["net"] == "mask" and s["rate"] == 0.1]
    bare, padded = (module.run({**s, "steps": 20}, 0, data) for s in settings)
    assert max(*bare["output_change"], *padded["output_change"]) < 1e-6
    assert padded["train_loss"] == pytest.approx(bare["train_loss"], rel=1e-5)


# Files that nobody named


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, answer: str | None, *options: str) -> str:
    """Draw saved results, on a terminal where there is an answer; what is printed."""
    Path("saved").mkdir(exist_ok=True)
    summary = summary_of("learning-rates", rates(10, 0.1))
    entry = ENTRIES[1]
    one = {"name": entry.name, "title": entry.title, "question": entry.question, "paper": asdict(entry.paper),
           **asdict(summary), "settings": {}, "runs": []}  # fmt: skip
    document = {"format": "batchnorm why", "version": 2, "versions": {"batchnorm": "1"}, "quick": False,
                "data": {"name": "digits", "image": [8, 8], "train": 1, "test": 1}, "seeds": [0, 1, 2],
                "experiments": [one]}  # fmt: skip
    Path("saved/all.json").write_text(json.dumps(document), encoding="utf-8")
    out = io.StringIO() if answer is None else Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["why", "--from", "saved/all.json", *options]) == 0
    return out.getvalue()


def test_no_file_is_written_that_was_not_named_nor_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Do you want the report with figures in why.html? [y/N]"
    out = drawn(monkeypatch, None)
    assert question not in out
    assert "No file was written." in out
    assert "with --html why.html." in " ".join(out.split())
    for answer in ("n\n", "\n", ""):
        out = drawn(monkeypatch, answer)
        assert question in out
        assert "No file was written." in out
        assert listing() == ["saved"]
    for answer, options in (("y\n", ()), ("Yes\n", ()), ("", ("--html", "other.html"))):
        assert "The command wrote " in drawn(monkeypatch, answer, *options)
    assert listing() == ["other.html", "saved", "why.html"]
    assert "why.html exists already; a yes replaces it." in drawn(monkeypatch, "n\n")


def test_a_whole_run_asks_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchnorm.tools.why.study.do", ran)
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["why", "noise", "--quick"]) == 130
    assert out.getvalue() == "Do you want the report with figures in why.html, and all numbers in why.json? [y/N] "
    assert listing() == []


def test_the_report_speaks_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    out = drawn(monkeypatch, None, "--lang", "zh", "--html", "zh.html")
    assert "网络能答对 90 % 的最大学习率，有批归一化时：10" in out
    assert "这证实了论文的说法。" in "".join(out.split())
    page = Path("zh.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert "更大的学习率" in page
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert drawn(monkeypatch, None, "--html", "zh.html") == out
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(cells, drawn(monkeypatch, None).splitlines())) <= 60


# The data


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    header = [0x800 + array.ndim if magic is None else magic, *array.shape]
    return struct.pack(f">{len(header)}I", *header) + array.astype(np.uint8).tobytes()


def mnist(**replaced: bytes | None) -> Path:
    """Write four files of tiny images; some as given instead, or not at all."""
    rng = np.random.default_rng(5)
    folder = Path("mnist")
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 70), ("t10k", 20)):
        files = {
            f"{part}-images-idx3-ubyte": idx(rng.integers(0, 256, (count, 8, 8))),
            f"{part}-labels-idx1-ubyte": idx(np.arange(count) % 10),
        }
        for name, content in files.items():
            given = replaced.get(name.replace("-", "_"), content)
            if given is not None:
                (folder / name).write_bytes(given)
    return folder


def test_mnist_is_read_raw_and_gzipped() -> None:
    folder = mnist()
    raw = load(f"mnist:{folder}")
    assert raw.train_images.shape == (70, 8, 8)
    assert raw.train_images.dtype == np.float32
    assert raw.train_images.min() >= 0
    assert raw.train_images.max() <= 1
    assert raw.test_labels.tolist() == [i % 10 for i in range(20)]
    content = (folder / "train-images-idx3-ubyte").read_bytes()
    assert np.array_equal(raw.train_images.ravel() * 255, np.frombuffer(content[16:], np.uint8).astype(np.float32))
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load(f"mnist:{folder}")
    assert np.array_equal(raw.train_images, zipped.train_images)
    assert np.array_equal(raw.test_labels, zipped.test_labels)


def test_why_runs_on_mnist(capsys: Capture) -> None:
    folder = mnist()
    command = ["why", "smoother-loss", "--quick", "--jobs", "1", "--data", f"mnist:{folder}"]
    assert main([*command, "--json", "why.json"]) == 0
    assert "on the data set mnist" in capsys.readouterr().out
    assert json.loads(Path("why.json").read_text())["data"] == {
        "name": "mnist",
        "image": [8, 8],
        "train": 70,
        "test": 20,
    }


IMAGES, LABELS = "train_images_idx3_ubyte", "train_labels_idx1_ubyte"


@pytest.mark.parametrize(
    ("replaced", "parts"),
    [
        ({IMAGES: None}, ["has neither train-images-idx3-ubyte nor", "four files"]),
        ({IMAGES: idx(np.zeros((70, 8, 8)), 0x801)}, ["must begin with 0x00000803", "0x00000801"]),
        ({IMAGES: b"\x00\x00"}, ["fewer than four bytes"]),
        ({IMAGES: idx(np.zeros((70, 8, 8)))[:10]}, ["at least 16", "it has 10"]),
        ({IMAGES: idx(np.zeros((70, 8, 8)))[:-1]}, ["must have 4496 bytes", "it has 4495", "fetch it again"]),
        ({IMAGES: idx(np.zeros((0, 8, 8))), LABELS: idx(np.zeros(0))}, ["holds nothing"]),
        ({IMAGES: idx(np.zeros((70, 7, 8)))}, ["(7, 8)", "(8, 8)", "one size"]),
        ({LABELS: idx(np.zeros(69))}, ["70 images", "69 labels"]),
        ({LABELS: idx(np.full(70, 11))}, ["the label 11", "0 to 9"]),
    ],
)
def test_damaged_idx_files_are_refused(replaced: dict[str, bytes | None], parts: list[str]) -> None:
    folder = mnist(**replaced)
    with pytest.raises(Refused) as refusal:
        load(f"mnist:{folder}")
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_a_damaged_gzip_is_refused() -> None:
    folder = mnist(**{IMAGES: None})
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"a" * 1000)[:-20])
    with pytest.raises(Refused, match=r"ubyte\.gz cannot be read"):
        load(f"mnist:{folder}")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(Refused, match=r"ubyte\.gz cannot be read"):
        load(f"mnist:{folder}")


# Refusals, before anything runs


def refused(argv: list[str], parts: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: object) -> None:
        pytest.fail("something ran")

    monkeypatch.setattr("batchnorm.tools.why.study.do", ran)
    before = listing()
    assert main(["why", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("batchnorm: ")
    for part in parts:
        assert part in captured.err
    assert listing() == before


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["fast"], ["no experiment 'fast'", "Did you mean faster?", "learning-rates"]),
        (["qqq"], ["no experiment 'qqq'. The experiments are:"]),
        (["--data", "cifar"], ["--data takes digits, or mnist:DIR", "'cifar'"]),
        (["--data", "mnist:"], ["--data takes digits, or mnist:DIR"]),
        (["--data", "mnist:nowhere"], ["there is no such directory"]),
        (["--json", "nowhere/x.json"], ["does not exist", "Create it first"]),
        (["--html", "folder"], ["folder is a directory"]),
        (["--html", "a", "--json", "a"], ["cannot both be"]),
        (["--from", "text.json", "--html", "folder"], ["folder is a directory"]),
        (["--from", "missing.json"], ["missing.json cannot be read"]),
        (["--from", "text.json"], ["is not JSON"]),
        (["--from", "other.json"], ['"format" must be "batchnorm why"']),
        (["--from", "newer.json"], ["has version 99"]),
        (["--from", "damaged.json"], ["damaged.json is damaged", "Run batchnorm why again"]),
        (["--from", "damaged.json", "--html", "damaged.json"], ["cannot both be"]),
        (["--from", "damaged.json", "faster"], ["name no EXPERIMENT"]),
    ],
)
def test_refusals(argv: list[str], parts: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    Path("text.json").write_text("{")
    Path("other.json").write_text("[]")
    Path("newer.json").write_text('{"format": "batchnorm why", "version": 99}')
    Path("damaged.json").write_text('{"format": "batchnorm why", "version": 2}')
    refused(argv, parts, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("package", "name", "distribution"),
    [
        ("torch", "PyTorch", "torch"),
        ("sklearn", "scikit-learn", "scikit-learn"),
        ("matplotlib", "matplotlib", "matplotlib"),
        ("rich", "rich", "rich"),
    ],
)
def test_what_is_missing_is_named(
    package: str, name: str, distribution: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused([], [f"needs {name}", f"pip install {distribution}"], capsys, monkeypatch)


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_wrong_numbers(option: str, capsys: Capture) -> None:
    assert main(["why", option, "0"]) == 2
    assert "'0' is not a positive integer" in capsys.readouterr().err


# Processes


def test_a_run_that_fails_is_named() -> None:
    data = Data("none", *(np.zeros(0, t) for t in (np.float32, np.int64, np.float32, np.int64)))  # type: ignore[arg-type]
    tasks = [Task("noise", setting, 7) for setting in experiment("noise").plan(True).settings()]
    with workers._workers(1, data) as one, pytest.raises(RuntimeError, match=r"the run noise, seed 7 \(.*net=with"):
        workers._distribute(tasks, one, lambda task, numbers: None)


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_end(processes: list[int]) -> bool:
    """Whether none is left in a moment: multiprocessing's own sees a closed pipe and then goes."""
    until = time.monotonic() + 60
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, processes))


def start(*options: str, at_work: bool = True) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a run of two processes, and return it when both are at work, or there at least, and their numbers."""
    command = [sys.executable, "-m", "batchnorm", "why", "--jobs", "2", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while True:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        found = children(process.pid)
        loaded = (b"libtorch" in Path(f"/proc/{c}/maps").read_bytes() for c in found[-2:])
        if len(found) >= 3 and (not at_work or all(loaded)):
            return process, found  # the first is multiprocessing's own
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="child processes are looked up in Linux's /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interruption_ends_all_processes_and_leaves_no_file(number: int, status: int) -> None:
    Path("why.json").write_text("old")
    process, found = start()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == ""
    assert "Traceback" not in err
    assert ("interrupted" in err) == (number == signal.SIGINT)
    assert listing() == ["why.json"]
    assert Path("why.json").read_text() == "old"
    assert all_end(found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="child processes are looked up in Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "as it starts"])
def test_a_process_that_dies_is_an_error_that_names_its_run(at_work: bool) -> None:
    process, found = start(at_work=at_work)
    os.kill(found[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert re.search(r"A process was ended by signal 9 in the run faster, seed \d", err)
    assert "--jobs 1" in err
    assert listing() == []
    assert all_end(found)
