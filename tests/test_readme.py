"""Every command of the README is run, on drawn data and a tiny backbone."""

import csv
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import requests
from PIL import Image

from datamodules.sample.faces import write_utkface
from datamodules.sample.galaxies import write_galaxy10
from launch.sweep import new_attempt, write_plan
from tests.commands import ROOT, run_command
from tests.report_rows import write_train_run
from tests.runs import draw_folder, overrides, read_results

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def draw_csv(root, count=30):
    """A folder with numbers (``days``) in labels.csv, or the 68 points of a face that is a dot pattern."""
    rng = np.random.default_rng(0)
    root.mkdir()
    rows = []
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(root / f"{index:02}.png")
        rows.append([f"{index:02}.png", *(rng.uniform(4, 44, 136) if root.name == "face68" else [index])])
    header = [f"{axis}{k}" for k in range(68) for axis in "xy"] if root.name == "face68" else ["days"]
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", *header], *rows])
    return root


def own_data(command, tmp_path):
    """The folder that DIR stands for in a command."""
    name = re.search(r"name=(\w+)", command)[1]
    return draw_folder(tmp_path / name) if "image_folder" in command else draw_csv(tmp_path / name)


def test_readme_begins_with_a_command():
    lines = README.splitlines()
    assert next(index for index, line in enumerate(lines) if line.startswith("make demo")) < 25
    assert len(lines) <= 200


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Adapters of age_class and galaxy, ranks 16 and 64, trained for a moment on drawn data."""
    folder = tmp_path_factory.mktemp("members")
    write_galaxy10(folder / "data" / "galaxy10", 60, seed=0)
    write_utkface(folder / "data" / "utkface", 60, seed=0)
    swept = ["-m", "task=age_class,galaxy", "lora.rank=16,64"]
    tiny = [text for text in overrides(folder, "trainer.max_epochs=1") if not text.startswith("lora")]
    done = run_command("train.py", [*swept, *tiny, f"paths.data={folder / 'data'}", "gram_images=16"])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python merge")])
def test_merges_run(command, members, tmp_path):
    _, script, *arguments = shlex.split(command)
    shutil.copytree(members / "out" / "adapters", tmp_path / "out" / "adapters")
    arguments += [f"paths.outputs={tmp_path / 'out'}", "images=16", "device=cpu", "logger=csv"]
    if any(text.startswith("sweep=") for text in arguments):
        arguments.append("sweep.of=[age_class,galaxy]")
    done = run_command(script, arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = read_results(tmp_path / "out")
    assert len(results) == (4 if "-m" in arguments else 1)
    assert all(row["task"] in ("age_class", "galaxy") for result in results for row in result["rows"])


@pytest.fixture(scope="module")
def merged(members):
    """A merged model of both tasks, and a folder of pictures."""
    arguments = ["tasks=[age_class,galaxy]", "merge=cat", f"paths.outputs={members / 'out'}", "images=16", "device=cpu"]
    done = run_command("merge.py", [*arguments, "logger=csv", "name=both"], members)
    assert done.returncode == 0, done.stderr[-3000:]
    return members / "out" / "models" / "both", draw_folder(members / "pictures", 3)


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.match("python (predict|export)", command)])
def test_models_are_used(command, merged, tmp_path):
    _, script, *arguments = shlex.split(command)
    model, pictures = merged
    arguments = [text.replace("outputs/models/NAME", str(model)).replace("DIR", str(pictures)) for text in arguments]
    done = run_command(script, [*arguments, f"paths.outputs={tmp_path}"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".onnx")]


def test_the_server_answers(merged):
    (command,) = (command for command in COMMANDS if command.startswith("python serve"))
    _, script, *arguments = shlex.split(command)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [text.replace("outputs/models/NAME", str(merged[0])) for text in arguments]
    process = subprocess.Popen([sys.executable, str(ROOT / script), *arguments, f"port={port}"])
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                page = requests.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        assert page.status_code == 200
        assert "age_class" in page.text
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_every_command_has_a_test():
    known = ("make", *(f"python {name}" for name in ("train", "merge", "predict", "export", "serve", "report")))
    assert [command for command in COMMANDS if not command.startswith(known)] == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python train")])
def test_commands_run(command, tmp_path):
    _, script, *arguments = shlex.split(command)
    if "--cfg" not in arguments:
        if "DIR" in command:
            place = own_data(command, tmp_path)
            arguments = [text.replace("DIR", str(place)) for text in arguments]
        else:
            write_galaxy10(tmp_path / "data" / "galaxy10", 60, seed=0)
        tiny = [text for text in overrides(tmp_path, "trainer=debug") if not text.startswith(("lora", "trainer.max"))]
        arguments += [*tiny, f"paths.data={tmp_path / 'data'}"]
    done = run_command(script, arguments, tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    if "--cfg" not in arguments:
        jobs = 9 if "-m" in arguments else 1
        assert len(read_results(tmp_path / "out")) == jobs


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python report")])
def test_reports_are_made(command, tmp_path):
    """One run and one sweep lie there already."""
    write_train_run(tmp_path / "out", "galaxy", 0)
    write_plan(new_attempt(tmp_path / "out", "table1"), [("seed=0", ["python", "train.py", "seed=0"])])
    _, script, *arguments = shlex.split(command)
    done = run_command(script, [*arguments, f"paths.outputs={tmp_path / 'out'}"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    if "watch=latest" in arguments:
        assert "table1" in done.stdout
    else:
        assert (tmp_path / "out" / "reports" / "all" / "report.html").is_file()


def test_shown_faults_are_the_real_ones():
    shown = re.search(r"```console\n\$ python (.*?)\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, *shlex.split(shown[1])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    for line in shown[2].splitlines():
        for part in line.split("..."):
            assert part.strip() in done.stderr


def test_python_example_names_what_exists():
    for module, names in re.findall(r"from ((?:lightning_modules|merging)[\w.]*) import (.+)", README):
        found = __import__(module, fromlist=["x"])
        assert all(hasattr(found, name.strip()) for name in names.split(","))
