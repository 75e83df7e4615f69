"""Where ``predict.py`` writes: earlier answers and drawings of its own are replaced, nothing else is."""

import json
import random
from pathlib import Path

import pytest

from launch.errors import CommandError, UserError
from merging.answer_places import DRAWN, check_drawn, check_output, check_places, require_drawings
from merging.picture_list import list_pictures
from merging.predicting import predict
from tests.model_cases import merged
from tests.picture_files import noise, write_picture
from tests.test_predict import config


def test_the_users_own_files_are_not_replaced_by_answers(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    own = tmp_path / "pics" / "list.csv"
    own.write_text("file,face,left,top,right,bottom,error\na.png,,,,,,\n")  # even where it looks like answers
    for images in (str(own), f"{tmp_path}/pics/*.csv", f"{tmp_path}/pics/../pics/list.csv"):
        with pytest.raises(CommandError, match=r"list\.csv: is one of images=.*, which it would replace"):
            check_output(["elsewhere.png", images], str(own))
    (tmp_path / "link.csv").symlink_to(own)
    with pytest.raises(CommandError, match="is one of images="):
        check_output([str(own)], str(tmp_path / "link.csv"))
    for name, content in {
        "notes.csv": b"file,text\n", "more.csv": b"file,face,left,top,right,bottom,error,my notes\n",
        "latin.csv": b"file,\xe9\n", "list.jsonl": b"[1]\n", "lines.jsonl": b'{"file": 1}\n', "table.parquet": b"PAR1",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CommandError, match=f"{name}: there is a file of that name that predict.py has not written"):
            check_output([str(own)], str(tmp_path / name))
    with pytest.raises(CommandError, match="there is a folder of that name; name a file"):
        check_output([str(own)], str(tmp_path / "pics"))
    (tmp_path / "empty.csv").touch()
    check_output([str(own)], str(tmp_path / "empty.csv"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_earlier_answers_are_replaced(tmp_path: Path, suffix: str) -> None:
    model, output = merged(tmp_path, ["age", "leaves", "points"]), str(tmp_path / f"x.{suffix}")
    write_picture(tmp_path / "in" / "a.png", noise(1))
    predict(config(tmp_path, model, tmp_path / "in", f"output={output}"))
    check_output([str(tmp_path / "in")], output)
    with pytest.raises(CommandError, match="is one of images="):
        check_output([output], output)


def test_each_choice_of_images_has_answers_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "my pictures").mkdir(parents=True)
    (tmp_path / "b" / "my pictures").mkdir(parents=True)
    (tmp_path / "b" / "list.csv").touch()
    first, second = (tmp_path / name / "my pictures" for name in "ab")
    choices = (
        (first, "model-my_pictures-"), (second, "model-my_pictures-"), (tmp_path / "b" / "list.csv", "model-list-"),
        (f"'{tmp_path}/*/*.png'", "model-"), (f"[{first},{second}]", "model-"), ("/", "model-"),
    )  # fmt: skip
    found = [Path(config(tmp_path, tmp_path / "model", images).output_file) for images, _ in choices]
    assert len(set(found)) == len(choices)
    for file, (_, beginning) in zip(found, choices, strict=True):
        assert file.parent == tmp_path / "out" / "predictions"
        assert file.name.removeprefix(beginning)[6:] == ".csv"
    again = config(tmp_path, tmp_path / "model", f"{first}/", f"pictures={tmp_path / 'drawn'}")
    assert again.output_file == str(found[0])
    column = config(tmp_path, tmp_path / "model", tmp_path / "b" / "list.csv", "column=path")
    assert Path(column.output_file) not in found


def test_answers_are_not_drawn_beside_the_pictures_that_they_are_of(tmp_path: Path) -> None:
    drawn = tmp_path / "in" / "drawn"
    drawn.mkdir(parents=True)
    pattern = f"{tmp_path}/in/**/*.jpg"
    with pytest.raises(CommandError, match="would answer its own drawings the next time"):
        check_drawn([str(tmp_path / "in")], str(drawn))
    check_drawn([str(drawn)], str(tmp_path / "in"))
    check_drawn([pattern], str(drawn))
    write_picture(drawn / "deeper" / "0000000-a.jpg", noise(0))
    for images in (pattern, str(drawn / "deeper" / "0000000-a.jpg")):
        with pytest.raises(CommandError, match=r"drawn: holds some of images=.*would answer its own drawings"):
            check_drawn([images], str(drawn))
    check_drawn([f"{tmp_path}/in/*.jpg"], str(drawn))


def test_a_globs_pictures_come_sorted(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(9)]
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_pictures([f"{tmp_path}/**/*.png"])]
    assert found == names


def test_earlier_drawings_do_not_stay_among_new_ones(tmp_path: Path) -> None:
    model, drawn = merged(tmp_path, ["leaves"]), tmp_path / "drawn"
    for number in range(3):
        write_picture(tmp_path / "many" / f"{number}.png", noise(number))
    write_picture(tmp_path / "one" / "x.png", noise(9))
    for images in ("many", "one"):
        check_places([str(tmp_path / images)], str(tmp_path / "x.csv"), str(drawn))
        predict(config(tmp_path, model, tmp_path / images, f"pictures={drawn}"))
        (drawn / ".DS_Store").touch()
    assert sorted(path.name for path in drawn.iterdir()) == [".DS_Store", "0000000-x.jpg", DRAWN]
    (tmp_path / "one" / "x.png").write_text("no more")
    with pytest.raises(UserError, match="Not one of 1 pictures"):
        predict(config(tmp_path, model, tmp_path / "one", f"pictures={drawn}"))
    assert (drawn / "0000000-x.jpg").exists()


def test_the_users_own_files_are_not_lost_to_drawings(tmp_path: Path) -> None:
    model, drawn, images = merged(tmp_path, ["leaves"]), tmp_path / "drawn", tmp_path / "in"
    write_picture(images / "a.png", noise(1))
    arguments = config(tmp_path, model, images, f"pictures={drawn}")
    predict(arguments)
    (drawn / "0000007-mine.jpg").write_text("mine")
    for refuse in (lambda: check_places([str(images)], "x.csv", str(drawn)), lambda: predict(arguments)):
        with pytest.raises(UserError, match=r"something else \(0000007-mine\.jpg\)"):
            refuse()
    assert (drawn / "0000007-mine.jpg").read_text() == "mine"
    (drawn / DRAWN).write_text(json.dumps({"drawings": 5}))
    with pytest.raises(UserError, match=r"something else \(0000000-a\.jpg, 0000007-mine\.jpg\)"):
        require_drawings(drawn)
    with pytest.raises(UserError, match=r"in is written as a whole and holds something else \(a\.png\)"):
        check_places(["elsewhere.png"], "x.csv", str(images))
    with pytest.raises(CommandError, match=r"x\.csv: lies in pictures=.*drawn2, which is written as a whole"):
        check_places([str(images)], str(tmp_path / "drawn2" / "deeper" / "x.csv"), str(tmp_path / "drawn2"))


def test_drawings_replace_what_a_link_leads_to(tmp_path: Path) -> None:
    model = merged(tmp_path, ["leaves"])
    write_picture(tmp_path / "in" / "a.png", noise(1))
    (tmp_path / "far").mkdir()
    (tmp_path / "drawn").symlink_to(tmp_path / "far")
    predict(config(tmp_path, model, tmp_path / "in", f"pictures={tmp_path / 'drawn'}"))
    assert (tmp_path / "drawn").is_symlink()
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["0000000-a.jpg", DRAWN]
